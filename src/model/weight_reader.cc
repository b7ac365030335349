#include "model/weight_reader.h"

#include "base/fail.h"

namespace lowbit {

Weight WeightReader::matrix(std::string_view of, int64_t out, int64_t in) const {
  const std::string name = full(of);
  const auto found = weights_.find(name);
  if (found == weights_.end()) {
    fail(ErrorCode::kCorruptFile, "the tensor {} is missing, config.json asks for [{}, {}]", name, out, in);
  }
  if (const Tensor* dense = std::get_if<Tensor>(&found->second)) {
    if (!is_floating(dense->dtype())) {
      fail(ErrorCode::kCorruptFile, "{} is {}, expected a floating type", name, dtype_name(dense->dtype()));
    }
    if (dense->shape() != Shape{out, in}) {
      fail(ErrorCode::kCorruptFile, "{} has shape {}, config.json asks for [{}, {}]", name,
           shape_text(dense->shape()), out, in);
    }
  } else if (out_features(found->second) != out || in_features(found->second) != in) {
    fail(ErrorCode::kCorruptFile, "{} is [{}, {}], config.json asks for [{}, {}]", name,
         out_features(found->second), in_features(found->second), out, in);
  }
  return found->second;
}

Tensor WeightReader::table(std::string_view name, int64_t rows, int64_t columns) const {
  const Weight found = matrix(name, rows, columns);
  if (const Tensor* dense = std::get_if<Tensor>(&found)) return *dense;
  fail(ErrorCode::kUnsupported, "{} is quantized; only linear layers and embeddings may be", full(name));
}

Tensor WeightReader::vector(std::string_view of, int64_t length) const {
  const std::string name = full(of);
  const auto found = weights_.find(name);
  const Tensor* tensor = found == weights_.end() ? nullptr : std::get_if<Tensor>(&found->second);
  if (!tensor)
    fail(ErrorCode::kCorruptFile, "the tensor {} is missing, config.json asks for [{}]", name, length);
  if (!is_floating(tensor->dtype()) || tensor->shape() != Shape{length}) {
    fail(ErrorCode::kCorruptFile, "{} is {} {}, config.json asks for a floating [{}]", name,
         dtype_name(tensor->dtype()), shape_text(tensor->shape()), length);
  }
  return converted(*tensor, DType::kF32);
}

Linear WeightReader::with_bias(std::string_view module, Weight weight, bool needs_bias) const {
  const std::string bias = std::string(module) + ".bias";
  const int64_t out = out_features(weight);
  Linear linear{full(module), std::move(weight), {}};
  if (needs_bias || has(bias)) linear.bias = vector(bias, out);
  return linear;
}

Linear WeightReader::linear(std::string_view module, int64_t out, int64_t in, bool needs_bias) const {
  return with_bias(module, matrix(std::string(module) + ".weight", out, in), needs_bias);
}

Linear WeightReader::conv1d(std::string_view module, int64_t out, int64_t in, bool needs_bias) const {
  const std::string name = std::string(module) + ".weight";
  const auto found = weights_.find(full(name));
  if (found != weights_.end() && std::holds_alternative<QuantizedTensor>(found->second))
    return linear(module, out, in, needs_bias);
  return with_bias(module, transposed(table(name, in, out)), needs_bias);
}

Norm WeightReader::rms_norm(std::string_view module, int64_t width, float epsilon) const {
  return {vector(std::string(module) + ".weight", width), {}, epsilon, full(module)};
}

Norm WeightReader::layer_norm(std::string_view module, int64_t width, float epsilon) const {
  return {vector(std::string(module) + ".weight", width), vector(std::string(module) + ".bias", width),
          epsilon, full(module)};
}

}  // namespace lowbit
