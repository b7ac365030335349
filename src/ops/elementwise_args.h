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

// Units: rows.
struct LayerNormArgs {
  const float* x;
  const float* weight;
  const float* bias;
  float* y;
  int64_t width;
  float epsilon;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kTanh };

// Units: elements.
struct ActivateArgs {
  const float* x;
  const float* up;  // that the result is multiplied with, or null
  float* out;
  Activation kind;
};

void rms_norm_ref(const RmsNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rms_norm_avx2(const RmsNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rope_ref(const RopeArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void rope_avx2(const RopeArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void layer_norm_ref(const LayerNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void layer_norm_avx2(const LayerNormArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void activate_ref(const ActivateArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void activate_avx2(const ActivateArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;
void activate_avx512(const ActivateArgs& args, int64_t begin, int64_t end, void* scratch) noexcept;

}  // namespace lowbit
