// The arithmetic of sampling, the same to the bit on CPU and GPU: whole numbers wherever the order of sums
// could matter, otherwise single IEEE operations. Plain data and arithmetic, for host and device.
#pragma once

#include <bit>
#include <cstdint>

namespace lowbit {

// As GenerateOptions has them.
struct SamplingRule {
  float temperature = 0;  // 0: the largest logit
  int64_t top_k = 0;      // 0: all
  float top_p = 1;
  float repetition_penalty = 1;

  constexpr bool draws() const { return temperature > 0 && top_k != 1; }
};

// The order of tokens, likeliest first: larger for a larger logit, and for equal ones for the smaller id. 0
// is no token's; NaN has no rank.
constexpr uint64_t rank_of(float logit, int32_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit == 0 ? 0.0f : logit);  // -0 is no less than 0
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
constexpr float logit_of_rank(uint64_t rank) {
  const uint32_t ordered = static_cast<uint32_t>(rank >> 32);
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}
constexpr int32_t id_of_rank(uint64_t rank) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank));
}
// Infinities are the largest and the smallest numbers.
constexpr bool is_finite_rank(uint64_t rank) {
  return rank != 0 && rank >> 32 != 0xff800000u && rank >> 32 != 0x007fffffu;
}

constexpr float penalized(float logit, float penalty) {
  return logit > 0 ? logit / penalty : logit * penalty;
}

// exp((logit - most) / temperature) in units of 2^-44, so that the sum over kMostSampledTokens fits 64 bits;
// a relative error of 2e-9, which is less than what F32 leaves open about a logit. 0, also for NaN, where it
// is less than 2^-44: such a token is never drawn.
constexpr int64_t kMostSampledTokens = int64_t{1} << 19;
constexpr double weight_factor(float temperature) {
  return 0x1p32 * 1.4426950408889634 / static_cast<double>(temperature);
}
constexpr uint64_t sampling_weight(float most, float logit, double factor) {
  // The weight is 2^-exponent, the exponent in units of 2^-32: 2^(part - whole), part in [0, 1).
  const double exponent = static_cast<double>(most - logit) * factor;
  if (!(exponent < 45 * 0x1p32)) return 0;
  const uint64_t fixed = static_cast<uint64_t>(exponent);
  const uint32_t part = 0u - static_cast<uint32_t>(fixed);
  const int whole = static_cast<int>((fixed + part) >> 32);
  // 2^part in units of 2^-31: the polynomial that interpolates (2^part - 1) / part at seven Chebyshev nodes.
  // Below 2^32 also at the end of the range.
  constexpr uint32_t kCoefficients[] = {0x4c98b,    0x2bdf8d,   0x13b1a32, 0x71ac4fc,
                                        0x1ebfbdd3, 0x58b90bfc, 0x80000000};
  uint32_t power = 0xade9;
  for (const uint32_t coefficient : kCoefficients)
    power = coefficient + static_cast<uint32_t>(static_cast<uint64_t>(power) * part >> 32);
  return static_cast<uint64_t>(power) << 13 >> whole;
}

// What the likeliest tokens' weights must reach to make up top_p of the sum; at least 1, at most the sum.
constexpr uint64_t mass_needed(uint64_t sum, float top_p) {
  const double share = static_cast<double>(sum) * static_cast<double>(top_p);
  if (share >= 0x1p64) return sum;
  uint64_t need = static_cast<uint64_t>(share);
  if (static_cast<double>(need) < share) ++need;
  return need < sum ? need : sum;
}

// a b / 2^64: for 64 random bits a number in [0, b).
constexpr uint64_t high_product(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu, b_high = b >> 32;
  const uint64_t middle = a_high * b_low + (a_low * b_low >> 32);
  return a_high * b_high + (middle >> 32) + ((a_low * b_high + (middle & 0xffffffffu)) >> 32);
}

// SplitMix64, Steele et al. 2014.
constexpr uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace lowbit
