// Any text as a model.safetensors.index.json: shards inside of the folder, or an Error.
#include "io/shards.h"
#include "lowbit/error.h"

#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    for (const auto& [file, tensors] :
         lowbit::parse_shard_index({reinterpret_cast<const char*>(data), size}, "index.json")) {
      if (file.find('/') != std::string::npos || file.find('\0') != std::string::npos || tensors.empty())
        __builtin_trap();
    }
  } catch (const lowbit::Error&) {
  }
  return 0;
}
