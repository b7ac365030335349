#include "base/fail.h"
#include "checkpoint/inspect_source.h"
#include "format/codebook.h"
#include "lowbit/inspect.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFirstValues = 8;

double value_at(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DType::kF64:
      return tensor.data<double>()[i];
    case DType::kI64:
      return static_cast<double>(tensor.data<int64_t>()[i]);
    case DType::kU64:
      return static_cast<double>(tensor.data<uint64_t>()[i]);
    case DType::kI32:
      return tensor.data<int32_t>()[i];
    case DType::kU32:
      return tensor.data<uint32_t>()[i];
    case DType::kI16:
      return tensor.data<int16_t>()[i];
    case DType::kU16:
      return tensor.data<uint16_t>()[i];
    case DType::kI8:
      return tensor.data<int8_t>()[i];
    case DType::kU8:
    case DType::kBool:
      return tensor.data<uint8_t>()[i];
    case DType::kF8E4M3:
      return codebook_of(Format::kFp8)[static_cast<const uint8_t*>(tensor.bytes())[i]];
    default:
      return float_at(tensor, i);
  }
}

// Adds the statistics of the finite values; mean and deviation by Welford's update, so that no square
// overflows.
void add_statistics(const Tensor& tensor, Json& json) {
  double least = std::numeric_limits<double>::infinity(), most = -least, mean = 0, squares = 0;
  int64_t finite = 0, zeros = 0, nans = 0, infinities = 0;
  const int64_t count = tensor.element_count();
  Json first = Json::array();
  for (int64_t i = 0; i < count; ++i) {
    const double value = value_at(tensor, i);
    if (i < kFirstValues) first.push_back(value);
    if (!std::isfinite(value)) {
      ++(std::isnan(value) ? nans : infinities);
      continue;
    }
    ++finite;
    zeros += value == 0;
    least = std::min(least, value);
    most = std::max(most, value);
    const double difference = value - mean;
    mean += difference / static_cast<double>(finite);
    squares += difference * (value - mean);
  }
  json.set("elements", count);
  json.set("min", finite ? Json(least) : Json());
  json.set("max", finite ? Json(most) : Json());
  json.set("mean", finite ? Json(mean) : Json());
  json.set("standard_deviation", finite ? Json(std::sqrt(squares / static_cast<double>(finite))) : Json());
  json.set("zeros", zeros);
  json.set("non_finite", nans + infinities);
  json.set("nan", nans);
  json.set("infinite", infinities);
  json.set("first_values", std::move(first));
}

Json shape_json(const Shape& shape) { return Json::Array(shape.begin(), shape.end()); }

}  // namespace

std::string inspect_tensor_json(const fs::path& path, const std::string& tensor_name) {
  const InspectSource source = open_inspect_source(path);
  Json json = Json::object();
  json.set("name", tensor_name);
  if (const auto raw = source.files.tensors.find(tensor_name); raw != source.files.tensors.end()) {
    json.set("dtype", dtype_name(raw->second.dtype()));
    json.set("shape", shape_json(raw->second.shape()));
    json.set("bytes", static_cast<uint64_t>(raw->second.byte_count()));
    add_statistics(raw->second, json);
    return json.dump(2);
  }
  const QuantizedTensor& quantized = find_quantized(source, tensor_name);
  json.set("dtype", fmt::format("{}-bit codes, group_size {}, {}{}", quantized.bits, quantized.group_size,
                                quantized.zero_points.empty() ? "symmetric" : "asymmetric",
                                quantized.column_order.empty() ? "" : ", act-order"));
  json.set("shape", shape_json({quantized.out_features, quantized.in_features}));
  json.set("bytes", static_cast<uint64_t>(quantized.byte_count()));
  add_statistics(dequantized(quantized), json);  // of the values that the codes stand for
  return json.dump(2);
}

}  // namespace lowbit
