// The JSON header of a safetensors file, parsed as a stream: what is not expected stops the parse at once, so
// a hostile header costs no more memory than its own text.
#pragma once

#include "tensor/dtype.h"
#include "tensor/tensor.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowbit {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, as the reference implementation
inline constexpr size_t kMaxSafetensorsTensors = 200'000;
inline constexpr size_t kMaxSafetensorsRank = 16;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // sorted by their bytes
  std::vector<std::pair<std::string, std::string>> metadata;
};

// `where` opens messages. buffer_bytes: what follows the header in the file; the entries must cover it
// exactly.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t buffer_bytes,
                                           std::string_view where);

}  // namespace lowbit
