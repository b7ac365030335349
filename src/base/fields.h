// Option fields to JSON and back; the list itself is lowbit/fields.h.
#pragma once

#include "base/json.h"
#include "lowbit/fields.h"

namespace lowbit {

// The fields with their present values, as a JSON object.
Json fields_to_json(const Fields& fields);

// Sets fields from an object; an unknown key or a wrong type throws kInvalidArgument naming `where` and the
// key.
void fields_from_json(const Fields& fields, const Json& object, std::string_view where);

}  // namespace lowbit
