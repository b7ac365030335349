// JSON that other rooms emit, read without trust in its shape: a key that is missing or of another type is
// left out of the text, and a key that this room does not know is shown as it is.
#pragma once

#include "base/json.h"

#include <string>
#include <string_view>

namespace lowbit {

std::string text_of(const Json* value);  // strings bare, numbers short, "-" for null or absent
std::string text_of(const Json& object, std::string_view key);
double number_of(const Json& object, std::string_view key, double otherwise);
std::string bytes_of(const Json& object, std::string_view key);  // "98.4 MB", "-" when absent
const Json::Array& array_of(const Json& object,
                            std::string_view key);  // an empty array when absent or of another type

// A table of an array of objects: the keys of `columns` that at least one of them has, then further keys;
// keys that end in "bytes" in units. Empty when the array is.
std::string objects_table(const Json& object, std::string_view key,
                          std::initializer_list<std::string_view> columns);

// "name: value" lines for the members of `object` that are numbers, strings or booleans and not in `shown`.
std::string remaining_text(const Json& object, std::initializer_list<std::string_view> shown);

// The same for the object at `key`, such as {"codes": 12}; empty when there is none.
std::string members_text(const Json& object, std::string_view key);

// "model.layers.12.mlp.up_proj" to "model.layers.*.mlp.up_proj": what the same module of every layer is
// called.
std::string layer_pattern(std::string_view module);

}  // namespace lowbit
