// Any text as a model's config.json: sizes that a model can be made of, or an Error. And behind bytes FF,
// which no JSON has, the files beside an encoder: sentence_bert_config.json, 1_Pooling/config.json,
// modules.json.
#include "lowbit/error.h"
#include "model/model.h"
#include "runtime/sentence_config.h"

#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string_view> files;
  for (std::string_view rest(reinterpret_cast<const char*>(data), size); files.size() < 4;) {
    const size_t end = rest.find('\xFF');
    files.push_back(rest.substr(0, end));
    if (end == rest.npos) break;
    rest.remove_prefix(end + 1);
  }
  files.resize(4);
  try {
    const lowbit::Json config = lowbit::parse_json(files[0], "config.json");
    const lowbit::ModelConfig sizes = lowbit::find_architecture(config).read_config(config);
    if (sizes.hidden_size < 1 || sizes.layers < 1 || sizes.heads < 1 || sizes.kv_heads < 1 ||
        sizes.vocab_size < 1 || sizes.max_positions < 1)
      __builtin_trap();
  } catch (const lowbit::Error&) {
  }
  try {
    lowbit::SentenceConfig config;
    for (size_t i = 1; i < files.size(); ++i) {
      if (files[i].empty()) continue;
      const lowbit::Json json = lowbit::parse_json(files[i], "file.json");
      if (i == 1) lowbit::read_lengths(json, "sentence_bert_config.json", config);
      if (i == 2) lowbit::read_pooling(json, "1_Pooling/config.json", config);
      if (i == 3) lowbit::read_modules(json, "modules.json", config);
    }
    if (config.max_length < 0) __builtin_trap();
  } catch (const lowbit::Error&) {
  }
  return 0;
}
