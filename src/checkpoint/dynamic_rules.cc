#include "checkpoint/dynamic_rules.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/fail.h"

#include <pcre2.h>

namespace lowbit {
namespace {

constexpr size_t kMaxRules = 1024;
constexpr size_t kMaxPattern = 10'000;
constexpr uint32_t kMatchLimit = 100'000;
constexpr uint32_t kHeapLimitKb = 16 * 1024;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct DynamicRules::Rule {
  std::string pattern;  // without its prefix
  bool excludes = false;
  Json overrides;
  std::unique_ptr<pcre2_code, FreeCode> code;

  bool matches(std::string_view module) const {
    const std::unique_ptr<pcre2_match_data, FreeData> data(pcre2_match_data_create(1, nullptr));
    const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
    if (!data || !context)
      fail(ErrorCode::kOutOfMemory, "no memory to match the dynamic rule \"{}\"", pattern);
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_depth_limit(context.get(), kMatchLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKb);
    const int result = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0,
                                   0, data.get(), context.get());
    if (result >= 0) return true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    fail(ErrorCode::kUnsupported, "the dynamic rule \"{}\" cannot be matched against {} within {} steps",
         pattern, module, kMatchLimit);
  }
};

DynamicRules::DynamicRules() = default;
DynamicRules::DynamicRules(DynamicRules&&) noexcept = default;
DynamicRules& DynamicRules::operator=(DynamicRules&&) noexcept = default;
DynamicRules::~DynamicRules() = default;

DynamicRules::DynamicRules(const Json& object, std::string_view where) {
  if (object.is_null()) return;
  if (!object.is_object()) {
    fail(ErrorCode::kCorruptFile, "{}: dynamic is {}, expected an object of rules", where,
         object.type_name());
  }
  if (object.size() > kMaxRules) {
    fail(ErrorCode::kUnsupported, "{}: dynamic has {} rules, at most {} are read", where, object.size(),
         kMaxRules);
  }
  for (const auto& [key, overrides] : object.as_object()) {
    Rule rule;
    rule.excludes = key.substr(0, 2) == "-:";
    rule.pattern = rule.excludes || key.substr(0, 2) == "+:" ? key.substr(2) : key;
    const std::string shown = key.substr(0, 200);
    if (!overrides.is_object() && !overrides.is_null()) {
      fail(ErrorCode::kCorruptFile, "{}: the dynamic rule \"{}\" is {}, expected an object of overrides",
           where, shown, overrides.type_name());
    }
    rule.overrides = overrides.is_null() ? Json::object() : overrides;
    if (rule.pattern.size() > kMaxPattern) {
      fail(ErrorCode::kUnsupported, "{}: the dynamic rule \"{}...\" is longer than {} bytes", where, shown,
           kMaxPattern);
    }
    int error = 0;
    PCRE2_SIZE position = 0;
    rule.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rule.pattern.data()), rule.pattern.size(),
                                  PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &position, nullptr));
    if (!rule.code) {
      PCRE2_UCHAR message[200];
      pcre2_get_error_message(error, message, sizeof message);
      fail(ErrorCode::kCorruptFile,
           "{}: the dynamic rule \"{}\" is no regular expression: {} at character {}", where, shown,
           reinterpret_cast<const char*>(message), position);
    }
    rules_.push_back(std::move(rule));
  }
}

DynamicRules::Match DynamicRules::match(std::string_view module) const {
  Match result;
  for (const Rule& rule : rules_) {
    if (rule.excludes && rule.matches(module)) {
      result.is_excluded = true;
      return result;
    }
  }
  for (const Rule& rule : rules_) {
    if (!rule.excludes && rule.matches(module)) {
      result.overrides = &rule.overrides;
      return result;
    }
  }
  return result;
}

}  // namespace lowbit
