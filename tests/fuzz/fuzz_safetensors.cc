// Any bytes as a safetensors file: tensors or an Error, and every byte of every tensor may be read.
#include "io/safetensors.h"
#include "lowbit/error.h"

#include <cstring>
#include <memory>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of exactly this size, so that the sanitizer sees a read past its end. A byte of the header
  // misaligns it.
  const size_t shift = size > 9 ? data[9] % 8 : 0;
  auto owner = std::make_shared<std::vector<std::byte>>(size + shift);
  if (size > 0) std::memcpy(owner->data() + shift, data, size);
  try {
    const lowbit::SafetensorsFile file =
        lowbit::parse_safetensors(owner, {owner->data() + shift, size}, "fuzz.safetensors");
    unsigned sum = 0;
    size_t bytes = 0;
    for (const lowbit::NamedTensor& named : file.tensors) {
      const auto* values = static_cast<const unsigned char*>(named.tensor.bytes());
      for (size_t i = 0; i < named.tensor.byte_count(); ++i) sum += values[i];
      bytes += named.tensor.byte_count();
    }
    if (bytes + file.header_bytes != size) __builtin_trap();
    volatile unsigned sink = sum;
    (void)sink;
  } catch (const lowbit::Error&) {
  }
  return 0;
}
