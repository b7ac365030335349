#include "format/affine.h"

#include "base/fail.h"
#include "format/bits.h"
#include "tensor/half.h"

#include <algorithm>

namespace lowbit {

Fields option_fields(AffineOptions& options) {
  return {{"bits", &options.bits, "bits per code: 2, 3, 4 or 8; with format log2 3 to 8"},
          {"group_size", &options.group_size, "columns that share a scale, or -1 for the whole row"},
          {"sym", &options.sym, "fix the zero point at the middle code; off: choose one per group"}};
}

void validate(const AffineOptions& options) {
  if (!is_supported_bits(options.bits)) {
    fail(ErrorCode::kInvalidArgument, "bits is {}, expected 2, 3, 4 or 8", options.bits);
  }
  if (options.group_size != -1 && options.group_size <= 0) {
    fail(ErrorCode::kInvalidArgument, "group_size is {}, expected -1 or a positive number of columns",
         options.group_size);
  }
}

float round_scale(float scale) {
  constexpr float kLeast = 0x1p-24f, kMost = 65504.0f;  // F16 with subnormals: small 8-bit groups need them
  if (!(scale > kLeast)) return kLeast;
  return f16_to_float(float_to_f16(std::min(scale, kMost)));
}

AffineGrid affine_grid(float low, float high, const AffineOptions& options) {
  low = std::min(low, 0.0f);
  high = std::max(high, 0.0f);
  const int max_code = (1 << options.bits) - 1;
  if (options.sym) {
    const float most = std::max(-low, high);
    return {most > 0 ? round_scale(2 * most / static_cast<float>(max_code)) : 1.0f, (max_code + 1) / 2};
  }
  if (high == low) return {1.0f, 0};
  const float scale = round_scale((high - low) / static_cast<float>(max_code));
  // Clamped before it becomes an integer: where the scale is cut to F16's largest, the level has no bound.
  const float level = std::min(std::nearbyint(-low / scale), static_cast<float>(max_code));
  return {scale, level > 0 ? static_cast<int>(level) : 0};
}

}  // namespace lowbit
