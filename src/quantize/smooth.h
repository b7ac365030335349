// SmoothQuant: a part of the inputs' ranges moves into the weights, so that both round well. Column j of the
// matrices that share an input is multiplied by s_j, and what makes the input divided by it (a norm's weight
// j, or row j of a matrix): the products stay what they were. Xiao et al., arXiv 2211.10438.
#pragma once

#include "io/safetensors.h"
#include "model/norm.h"

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct SmoothAlpha {
  std::optional<float> value;  // none: searched for each layer
};
// "auto", or a number from 0 to 1; kInvalidArgument otherwise.
SmoothAlpha parse_smooth_alpha(std::string_view text);

// Largest magnitudes of the columns of matrices [out, in] that share an input.
std::vector<float> column_sizes(const OpContext& ops, std::span<const Tensor> weights);
// s_j = inputs_j^alpha / weights_j^(1 - alpha) of largest magnitudes; 1 where one of them is 0.
std::vector<float> smooth_factors(std::span<const float> inputs, std::span<const float> weights, float alpha);
// F32 [out, in]: column j times factors[j], row n divided by divisors[n]; of either there may be none.
Tensor rescaled(const OpContext& ops, const Tensor& weight, std::span<const float> factors,
                std::span<const float> divisors = {});

// Divides the norm by the factors, as files keep it in the type given: `norm` becomes what they will say, and
// factors become what that divides by, so that products stay what they were in spite of the rounding (a layer
// norm's bias is rounded, no more); 1 where the type holds no such quotient. The file's tensors.
std::vector<NamedTensor> fold_into(Norm& norm, DType dtype, std::vector<float>& factors);

}  // namespace lowbit
