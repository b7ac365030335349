// Takes tensors from named weights and checks them against the config.
#pragma once

#include "model/norm.h"

namespace lowbit {

class WeightReader {
 public:
  // prefix: goes before all names.
  explicit WeightReader(const NamedWeights& weights, std::string prefix = "")
      : weights_(weights), prefix_(std::move(prefix)) {}
  WeightReader inside(std::string_view part) const { return WeightReader(weights_, full(part)); }
  WeightReader outside() const { return WeightReader(weights_); }  // without any prefix

  // Each throws kCorruptFile naming the tensor, the shape found and the shape expected from config.json.
  Weight matrix(std::string_view name, int64_t out_features, int64_t in_features) const;
  Tensor table(std::string_view name, int64_t rows, int64_t columns) const;  // never quantized
  Tensor vector(std::string_view name, int64_t length) const;  // as F32, which holds the others exactly
  bool has(std::string_view name) const { return weights_.find(full(name)) != weights_.end(); }

  // "<module>.weight" and, where the file has one, "<module>.bias". A bias that is required but absent is an
  // error.
  Linear linear(std::string_view module, int64_t out_features, int64_t in_features, bool needs_bias) const;
  // The same of a module that keeps its dense weight the other way round, [in, out] (GPT-2's Conv1D): a copy
  // is made. Codes of such a module are as those of others.
  Linear conv1d(std::string_view module, int64_t out_features, int64_t in_features, bool needs_bias) const;

  // "<module>.weight" and, of a layer norm, "<module>.bias".
  Norm rms_norm(std::string_view module, int64_t width, float epsilon) const;
  Norm layer_norm(std::string_view module, int64_t width, float epsilon) const;

 private:
  std::string full(std::string_view name) const { return prefix_ + std::string(name); }
  Linear with_bias(std::string_view module, Weight weight, bool needs_bias) const;

  const NamedWeights& weights_;
  std::string prefix_;
};

}  // namespace lowbit
