// The values of a codebook in ascending order: what finding the nearest of them takes. Plain data only: files
// of special instruction sets include this.
#pragma once

#include <cstdint>

namespace lowbit {

constexpr int kMostBuckets = 512;

struct Levels {
  int count = 0;      // 2 to 256; with fp4 0 stands twice, for values below it and for others
  float largest = 1;  // magnitude: the scale of a group is its largest magnitude over this
  // The nearest of x is value i where x > limits[i - 1] and not x > limits[i]: how ties go is in the limits.
  // From limits[count - 1] on infinity.
  float values[256] = {}, limits[256] = {};
  uint8_t codes[256] = {};   // of the values
  float by_code[256] = {};   // what a code means: the codebook
  uint8_t code_of_zero = 0;  // NaN gets it
  int fp8_mantissa = 0;      // 3 or 2: these are the values of fp8 E4M3 or E5M2

  // More than 16: where a search begins. Magnitudes with the same upper bits, (bits of |x|) >> bucket_shift,
  // less first_bucket, are a bucket; the first and the last have all beyond them; those of values below 0
  // stand behind the others. A value's level is its bucket's start, or the next one. buckets 0: they would be
  // too many.
  int bucket_shift = 0, first_bucket = 0, buckets = 0;  // of each sign
  int32_t starts[2 * kMostBuckets] = {};
};

// Below it the reciprocal of a scale would not be finite.
constexpr float kLeastScale = 1e-38f;

}  // namespace lowbit
