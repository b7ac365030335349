// What the kernels of the small ops get. Plain data only: files of special instruction sets include this.
#pragma once

#include <cstdint>

namespace lowbit {

// Units: rows.
struct RmsNormArgs {
  const float* x;
  const float* weight;
  float* y;
  int64_t width;
  float epsilon;
};

// Units: tokens.
struct RopeArgs {
  float* x;
  const int32_t* positions;
  const float* cosines;
  const float* sines;
  int64_t heads, head_dim, half;  // half: rotary_dim / 2
};

// Units: elements.
struct SwigluArgs {
  const float* gate;
  const float* up;
  float* out;
};

void rms_norm_ref(const RmsNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rms_norm_avx2(const RmsNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rope_ref(const RopeArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rope_avx2(const RopeArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void swiglu_ref(const SwigluArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void swiglu_avx2(const SwigluArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void swiglu_avx512(const SwigluArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
