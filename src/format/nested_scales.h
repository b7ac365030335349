// Scales that are encoded themselves ("double quantization", bnb_4bit_use_double_quant; QLoRA, arXiv
// 2305.14314, section 3): less their mean, as codes of 8 bits in groups of 256, by a codebook that is dense
// near 0 (Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, "dynamic tree
// quantization").
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace lowbit {

using DynamicMap = std::array<float, 256>;  // ascending

// Signed: 127 negative values from -0.993 on, 0, 128 positive ones up to 1. Unsigned: 0 and 255 up to 1.
const DynamicMap& dynamic_map_signed();
const DynamicMap& dynamic_map_unsigned();

// The code of the entry nearest to x; of two as near, the lower one.
int nearest_entry(const DynamicMap& map, float x);

struct NestedScales {
  static constexpr int64_t kGroupSize = 256;  // scales that share an outer one

  std::vector<uint8_t> codes;       // of each scale
  std::vector<float> outer_scales;  // of each group
  DynamicMap map;
  float offset = 0;
};

// How a code is found: the entry nearest to the scale, as on a GPU; or as bitsandbytes does it on the CPU,
// nearest to the nearest of 65536 places from -1 to 1, so that 0 becomes 2e-5 of the largest.
enum class NestedRounding : uint8_t { kNearest, kCpuTable };

float mean_of(std::span<const float> scales);  // 0 of none
NestedScales nested(std::span<const float> scales, float offset,
                    NestedRounding rounding = NestedRounding::kNearest);
// map[code] * outer + offset, in that order: bitsandbytes' floats.
std::vector<float> unnested(const NestedScales& scales);

}  // namespace lowbit
