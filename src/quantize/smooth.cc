#include "quantize/smooth.h"

#include "base/fail.h"
#include "ops/dense_rows.h"
#include "ops/parallel.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace lowbit {

SmoothAlpha parse_smooth_alpha(std::string_view text) {
  if (text == "auto") return {};
  float value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !(value >= 0 && value <= 1)) {
    fail(ErrorCode::kInvalidArgument, "smooth_alpha is \"{}\", expected \"auto\" or a number from 0 to 1",
         text);
  }
  return {value};
}

std::vector<float> column_sizes(const OpContext& ops, std::span<const Tensor> weights) {
  const int64_t in = weights[0].size(1);
  std::vector<std::vector<float>> own(static_cast<size_t>(worker_count(ops)),
                                      std::vector<float>(static_cast<size_t>(in)));
  for (const Tensor& weight : weights) {
    split_work(ops, weight.size(0), chunk_for(in, 1 << 16), [&](int64_t begin, int64_t end, int worker) {
      std::vector<float>& sizes = own[static_cast<size_t>(worker)];
      std::vector<float> row(static_cast<size_t>(in));
      for (int64_t n = begin; n < end; ++n) {
        read_elements(weight, n * in, in, row.data());
        for (size_t j = 0; j < row.size(); ++j) sizes[j] = std::max(sizes[j], std::abs(row[j]));
      }
    });
  }
  for (const std::vector<float>& sizes : own) {
    for (size_t j = 0; j < sizes.size(); ++j) own[0][j] = std::max(own[0][j], sizes[j]);
  }
  return own[0];
}

std::vector<float> smooth_factors(std::span<const float> inputs, std::span<const float> weights,
                                  float alpha) {
  constexpr float kMost = 1e4f;  // what norms in F16 still hold
  std::vector<float> factors(inputs.size(), 1.0f);
  for (size_t j = 0; j < inputs.size(); ++j) {
    if (!(inputs[j] > 0 && weights[j] > 0)) continue;
    factors[j] = std::clamp(std::pow(inputs[j], alpha) / std::pow(weights[j], 1 - alpha), 1 / kMost, kMost);
  }
  return factors;
}

Tensor rescaled(const OpContext& ops, const Tensor& weight, std::span<const float> factors,
                std::span<const float> divisors) {
  const int64_t in = weight.size(1);
  Tensor scaled = Tensor::allocate(DType::kF32, weight.shape());
  float* const to = scaled.mutable_data<float>();
  split_work(ops, weight.size(0), chunk_for(in, 1 << 16), [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      float* const row = to + n * in;
      read_elements(weight, n * in, in, row);
      for (size_t j = 0; j < factors.size(); ++j) row[j] *= factors[j];
      for (int64_t j = 0; j < in && !divisors.empty(); ++j) row[j] /= divisors[static_cast<size_t>(n)];
    }
  });
  return scaled;
}

std::vector<NamedTensor> fold_into(Norm& norm, DType dtype, std::vector<float>& factors) {
  const auto stored = [&](const auto& value_of) {
    Tensor values = Tensor::allocate(DType::kF32, norm.weight.shape());
    for (size_t j = 0; j < factors.size(); ++j) values.mutable_data<float>()[j] = value_of(j);
    return converted(values, dtype);
  };
  const float* const before = norm.weight.data<float>();
  const auto divided = [&](size_t j) { return before[j] / factors[j] - norm.weight_offset; };
  const Tensor rounded = stored(divided);
  for (size_t j = 0; j < factors.size(); ++j) {
    const float after = float_at(rounded, static_cast<int64_t>(j)) + norm.weight_offset,
                found = before[j] / after;
    factors[j] = std::abs(found / factors[j] - 1) < 0.1f ? found : 1.0f;  // NaN too: as it was
  }
  std::vector<NamedTensor> tensors = {{norm.module + ".weight", stored(divided)}};
  if (!norm.bias.empty()) {
    tensors.push_back(
        {norm.module + ".bias", stored([&](size_t j) { return norm.bias.data<float>()[j] / factors[j]; })});
    norm.bias = converted(tensors[1].tensor, DType::kF32);
  }
  Tensor weight = Tensor::allocate(DType::kF32, norm.weight.shape());
  for (int64_t j = 0; j < weight.element_count(); ++j)
    weight.mutable_data<float>()[j] = float_at(tensors[0].tensor, j) + norm.weight_offset;
  norm.weight = weight;
  return tensors;
}

}  // namespace lowbit
