#include "tensor/activations.h"

#include "base/fail.h"

namespace lowbit {
namespace {

const void* expect(ConstActivations values, DType dtype) {
  if (values.dtype != dtype) {
    fail(ErrorCode::kInternal, "an operator was given {}, expected {}", dtype_name(values.dtype),
         dtype_name(dtype));
  }
  return values.data;
}

}  // namespace

const float* floats(ConstActivations values) {
  return static_cast<const float*>(expect(values, DType::kF32));
}
float* floats(Activations values) { return const_cast<float*>(floats(ConstActivations(values))); }
const uint16_t* halves(ConstActivations values) {
  return static_cast<const uint16_t*>(expect(values, DType::kBF16));
}
uint16_t* halves(Activations values) { return const_cast<uint16_t*>(halves(ConstActivations(values))); }

}  // namespace lowbit
