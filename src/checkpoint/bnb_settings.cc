#include "base/fail.h"
#include "checkpoint/bnb.h"

#include <algorithm>

namespace lowbit {
namespace {

const Json* present(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value && !value->is_null() ? value : nullptr;
}

bool flag(const Json& object, std::string_view key, std::string_view where) {
  const Json* value = present(object, key);
  if (!value) return false;
  if (!value->is_bool())
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected true or false", where, key, value->type_name());
  return value->as_bool();
}

std::string choice(const Json& object, std::string_view key, std::initializer_list<std::string_view> known,
                   std::string_view where) {
  const Json* value = present(object, key);
  if (!value) return std::string(*known.begin());
  if (!value->is_string())
    fail(ErrorCode::kCorruptFile, "{}: {} is {}, expected a string", where, key, value->type_name());
  const std::string& text = value->as_string();
  if (std::find(known.begin(), known.end(), text) == known.end()) {
    std::string list;
    for (std::string_view one : known) list += (list.empty() ? "" : ", ") + std::string(one);
    fail(ErrorCode::kCorruptFile, "{}: {} is \"{}\", expected one of {}", where, key, text.substr(0, 100),
         list);
  }
  return text;
}

}  // namespace

bool is_bnb_config(const Json& object) {
  const Json* method = object.find("quant_method");
  if (method && method->is_string()) return method->as_string() == "bitsandbytes";
  return !method && (object.find("load_in_4bit") || object.find("load_in_8bit"));
}

Format read_bnb_format(const Json& object, std::string_view where) {
  const bool in_4bit = flag(object, "load_in_4bit", where) || flag(object, "_load_in_4bit", where);
  const bool in_8bit = flag(object, "load_in_8bit", where) || flag(object, "_load_in_8bit", where);
  if (in_4bit && in_8bit)
    fail(ErrorCode::kCorruptFile, "{}: load_in_4bit and load_in_8bit are both true, expected one", where);
  if (in_8bit) {
    fail(ErrorCode::kUnsupported,
         "{}: load_in_8bit: lowbit reads bitsandbytes' 4 bits (nf4, fp4), not yet its 8 bits; quantize the "
         "original model with `lowbit quantize --bits 8`",
         where);
  }
  const Format format =
      choice(object, "bnb_4bit_quant_type", {"fp4", "nf4"}, where) == "nf4" ? Format::kNf4 : Format::kFp4;
  flag(object, "bnb_4bit_use_double_quant", where);
  choice(object, "bnb_4bit_compute_dtype", {"float32", "float16", "bfloat16", "float64"}, where);
  choice(object, "bnb_4bit_quant_storage", {"uint8", "int8", "float16", "bfloat16", "float32", "float64"},
         where);
  if (const Json* skip = present(object, "llm_int8_skip_modules")) {
    if (!skip->is_array())
      fail(ErrorCode::kCorruptFile, "{}: llm_int8_skip_modules is {}, expected a list of names", where,
           skip->type_name());
    for (const Json& name : skip->as_array()) {
      if (!name.is_string())
        fail(ErrorCode::kCorruptFile, "{}: llm_int8_skip_modules holds {}, expected names", where,
             name.type_name());
    }
  }
  return format;
}

}  // namespace lowbit
