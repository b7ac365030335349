#include "base/fail.h"
#include "checkpoint/bnb.h"

#include <algorithm>
#include <cmath>

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

BnbSettings read_bnb_settings(const Json& object, std::string_view where) {
  const bool in_4bit = flag(object, "load_in_4bit", where) || flag(object, "_load_in_4bit", where);
  const bool in_8bit = flag(object, "load_in_8bit", where) || flag(object, "_load_in_8bit", where);
  if (in_4bit && in_8bit)
    fail(ErrorCode::kCorruptFile, "{}: load_in_4bit and load_in_8bit are both true, expected one", where);
  if (in_8bit && flag(object, "llm_int8_has_fp16_weight", where)) {
    fail(ErrorCode::kUnsupported,
         "{}: llm_int8_has_fp16_weight: the weights are floats, which bitsandbytes rounds anew for each "
         "product; remove quantization_config from the config and load the model with load_in_8bit",
         where);
  }
  BnbSettings settings;
  settings.format =
      choice(object, "bnb_4bit_quant_type", {"fp4", "nf4"}, where) == "nf4" ? Format::kNf4 : Format::kFp4;
  if (in_8bit) settings.format = Format::kInt8;
  if (const Json* threshold = present(object, "llm_int8_threshold")) {
    if (!threshold->is_number() || !(threshold->as_number() >= 0) || !std::isfinite(threshold->as_number()))
      fail(ErrorCode::kCorruptFile, "{}: llm_int8_threshold is {}, expected a number, 0 or more", where,
           threshold->dump().substr(0, 100));
    settings.llm_int8_threshold = static_cast<float>(threshold->as_number());
  }
  settings.use_double_quant = flag(object, "bnb_4bit_use_double_quant", where);
  flag(object, "llm_int8_enable_fp32_cpu_offload", where);
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
  return settings;
}

}  // namespace lowbit
