// What passes between operators: rows of numbers that lie where the operators compute, F32 on the CPU. A
// pointer with its type; the memory is somebody else's.
#pragma once

#include "base/fail.h"
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
  ConstActivations(const Activations& values) : data(values.data), dtype(values.dtype) {}
};

// For operators on the CPU, which know no other type.
inline const float* floats(ConstActivations values) {
  if (values.dtype != DType::kF32) {
    fail(ErrorCode::kInternal, "an operator on the CPU was given {}, expected F32", dtype_name(values.dtype));
  }
  return static_cast<const float*>(values.data);
}
inline float* floats(Activations values) { return const_cast<float*>(floats(ConstActivations(values))); }

}  // namespace lowbit
