#include "runtime/sentence_config.h"

#include "base/fail.h"

namespace lowbit {

void read_lengths(const Json& sentence_bert_config, std::string_view where, SentenceConfig& config) {
  if (const Json* most = sentence_bert_config.find("max_seq_length"); most && !most->is_null()) {
    if (!most->is_integer() || most->as_integer() < 1) {
      fail(ErrorCode::kCorruptFile, "{}: max_seq_length is {}, expected a positive number of tokens", where,
           most->dump().substr(0, 100));
    }
    config.max_length = most->as_integer();
  }
  if (const Json* lower = sentence_bert_config.find("do_lower_case");
      lower && lower->is_bool() && lower->as_bool()) {
    fail(ErrorCode::kUnsupported, "{}: do_lower_case is true; lowbit lowers what tokenizer.json says alone",
         where);
  }
}

// "pooling_mode_mean_tokens": true and the like; newer files say "pooling_mode": "mean".
void read_pooling(const Json& pooling_config, std::string_view where, SentenceConfig& config) {
  if (!pooling_config.is_object()) {
    fail(ErrorCode::kCorruptFile, "{}: the file holds {}, expected an object", where,
         pooling_config.type_name());
  }
  std::string found;
  auto add = [&](const std::string& mode) { found += (found.empty() ? "" : ", ") + mode; };
  if (const Json* mode = pooling_config.find("pooling_mode"); mode && mode->is_string()) {
    add(mode->as_string());
  } else {
    for (const auto& [key, value] : pooling_config.as_object()) {
      constexpr std::string_view kPrefix = "pooling_mode_";
      if (key.starts_with(kPrefix) && value.is_bool() && value.as_bool()) add(key.substr(kPrefix.size()));
    }
  }
  if (found == "mean_tokens" || found == "mean") {
    config.pooling = "mean";
  } else if (found == "cls_token" || found == "cls") {
    config.pooling = "cls";
  } else {
    fail(ErrorCode::kUnsupported, "{}: the pooling is \"{}\"; lowbit knows mean and cls: name one of them",
         where, found);
  }
}

void read_modules(const Json& modules, std::string_view where, SentenceConfig& config) {
  if (!modules.is_array())
    fail(ErrorCode::kCorruptFile, "{}: the file holds {}, expected an array", where, modules.type_name());
  for (const Json& module : modules.as_array()) {
    const Json* type = module.find("type");
    if (!type || !type->is_string()) {
      fail(ErrorCode::kCorruptFile, "{}: a module is {}, expected an object with a type", where,
           module.dump().substr(0, 100));
    }
    const std::string name = type->as_string().substr(type->as_string().rfind('.') + 1);
    if (name == "Normalize") {
      config.is_normalized = true;
    } else if (name != "Transformer" && name != "Pooling") {
      fail(ErrorCode::kUnsupported,
           "{}: the module {} is not supported; Transformer, Pooling and Normalize are", where,
           type->as_string());
    }
  }
}

}  // namespace lowbit
