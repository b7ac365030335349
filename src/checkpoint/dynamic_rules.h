// Per-module overrides of a GPTQ config: {"regex": {"bits": 8, ...}}. A key that begins with "-:" leaves the
// modules it matches unquantized, "+:" or nothing overrides options. The pattern must match from the
// beginning of the module's name (as Python's re.match); rules with "-:" are asked first, of the others the
// first match wins.
#pragma once

#include "base/json.h"

#include <memory>
#include <string_view>
#include <vector>

namespace lowbit {

class DynamicRules {
 public:
  DynamicRules();
  // `object`: the value of "dynamic"; null gives no rules. kCorruptFile names `where` and the rule: not an
  // object, a pattern that is no regular expression, overrides of a wrong type. kUnsupported: more than 1,024
  // rules.
  DynamicRules(const Json& object, std::string_view where);
  DynamicRules(DynamicRules&&) noexcept;
  DynamicRules& operator=(DynamicRules&&) noexcept;
  ~DynamicRules();

  struct Match {
    bool is_excluded = false;         // a "-:" rule matches
    const Json* overrides = nullptr;  // an object, or null when no rule matches
  };
  // A pattern that needs more than 100,000 steps throws kUnsupported: it is meant to stall.
  Match match(std::string_view module) const;
  bool empty() const { return rules_.empty(); }

 private:
  struct Rule;
  std::vector<Rule> rules_;
};

}  // namespace lowbit
