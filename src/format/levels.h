// The values of a codebook in ascending order: what finding the nearest of them takes. Plain data only: files
// of special instruction sets include this.
#pragma once

#include <cstdint>

namespace lowbit {

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
};

// Below it the reciprocal of a scale would not be finite.
constexpr float kLeastScale = 1e-38f;

}  // namespace lowbit
