// One list of fields per options struct feeds the command line, JSON, the report and the Python keywords.
// A field is a name (snake_case, the ecosystem's word), a pointer to the member, and one sentence of help with unit
// and range. The default is the member's own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"

namespace lowbit {

struct Field {
  std::string_view name;
  std::variant<bool*, int*, int64_t*, uint64_t*, float*, double*, std::string*, std::vector<std::string>*,
               std::optional<bool>*>
      value;
  std::string_view help;
};

using Fields = std::vector<Field>;

// The fields with their present values, as a JSON object.
Json fields_to_json(const Fields& fields);

// Sets fields from an object; an unknown key or a wrong type throws kInvalidArgument naming `where` and the key.
void fields_from_json(const Fields& fields, const Json& object, std::string_view where);

}  // namespace lowbit
