// What passes between operators: rows of numbers that lie where the operators compute, F32 on the CPU, BF16
// on a GPU. A pointer with its type; the memory is somebody else's.
#pragma once

#include "tensor/dtype.h"

#include <cstdint>

namespace lowbit {

struct Activations {
  void* data = nullptr;
  DType dtype = DType::kF32;

  Activations() = default;
  Activations(float* values) : data(values) {}
  Activations(void* values, DType type) : data(values), dtype(type) {}

  Activations from(int64_t element) const {
    return {static_cast<char*>(data) + element * static_cast<int64_t>(dtype_size(dtype)), dtype};
  }
};

struct ConstActivations {
  const void* data = nullptr;
  DType dtype = DType::kF32;

  ConstActivations() = default;
  ConstActivations(const float* values) : data(values) {}
  ConstActivations(float* values) : data(values) {}
  ConstActivations(const void* values, DType type) : data(values), dtype(type) {}
  ConstActivations(const Activations& values) : data(values.data), dtype(values.dtype) {}
};

// For operators on the CPU, which know no other type.
const float* floats(ConstActivations values);
float* floats(Activations values);
// For those on a GPU: BF16.
const uint16_t* halves(ConstActivations values);
uint16_t* halves(Activations values);

}  // namespace lowbit
