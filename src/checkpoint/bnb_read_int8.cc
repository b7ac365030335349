#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "format/int8.h"

#include <cmath>
#include <cstring>

namespace lowbit {
namespace {

constexpr std::string_view kWeight = ".weight", kScales = ".SCB", kFormat = ".weight_format";

const Tensor* found(const Checkpoint& checkpoint, const std::string& name) {
  const auto place = checkpoint.files.tensors.find(name);
  return place == checkpoint.files.tensors.end() ? nullptr : &place->second;
}

void check_layout(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor* layout = found(checkpoint, name);
  if (!layout) return;  // files of old have none: they are in rows
  if (layout->dtype() != DType::kU8 || layout->element_count() != 1) {
    fail(ErrorCode::kCorruptFile, "[bitsandbytes] {} is {} {}, expected one U8", name,
         dtype_name(layout->dtype()), shape_text(layout->shape()));
  }
  const int code = layout->data<uint8_t>()[0];
  if (code == kBnbRowFormat) return;
  constexpr const char* kNames[] = {"row", "col32", "col_turing", "col_ampere"};
  fail(
      ErrorCode::kUnsupported,
      "[bitsandbytes] {} is {} ({}): the weights lie in tiles of an old GPU; lowbit reads {} (row): save the "
      "model again with bitsandbytes 0.45 or later",
      name, code, code < 4 ? kNames[code] : "unknown", kBnbRowFormat);
}

QuantizedTensor read_module(const BnbSettings& settings, const Checkpoint& checkpoint,
                            const std::string& module) {
  const std::string name = module + std::string(kWeight);
  const Tensor *codes = found(checkpoint, name), *sizes = found(checkpoint, module + std::string(kScales));
  if (!codes || !sizes) {
    fail(ErrorCode::kCorruptFile,
         "[bitsandbytes] {} is missing: the file is incomplete; save the model again",
         codes ? module + std::string(kScales) : name);
  }
  if (codes->dtype() != DType::kI8 || codes->shape().size() != 2) {
    fail(ErrorCode::kCorruptFile, "[bitsandbytes] {} is {} {}, expected an I8 matrix", name,
         dtype_name(codes->dtype()), shape_text(codes->shape()));
  }
  const int64_t out = codes->size(0), in = codes->size(1);
  if (sizes->dtype() != DType::kF32 || sizes->element_count() != out) {
    fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}{} is {} {}, expected F32 of {} elements", module,
         kScales, dtype_name(sizes->dtype()), shape_text(sizes->shape()), out);
  }
  check_layout(checkpoint, module + std::string(kFormat));
  std::vector<float> scales(static_cast<size_t>(out));
  std::memcpy(scales.data(), sizes->bytes(), sizes->byte_count());
  for (size_t row = 0; row < scales.size(); ++row) {
    if (!(scales[row] >= 0) || !std::isfinite(scales[row])) {
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}{}: scale {} of {} is {}, expected 0 or more", module,
           kScales, row, out, scales[row]);
    }
    scales[row] = int8_scale(scales[row]);
  }
  QuantizedTensor weight = from_int8_rows(static_cast<const int8_t*>(codes->bytes()), scales, in);
  weight.activations = ActivationFormat::kInt8Dynamic;
  weight.outlier_threshold = settings.llm_int8_threshold;
  return weight;
}

}  // namespace

void read_bnb_int8_weights(const BnbSettings& settings, std::string_view where, Checkpoint& checkpoint) {
  bool has_codes = false;
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    const bool is_codes = tensor.dtype() == DType::kI8 && name.ends_with(kWeight);
    if (is_codes || name.ends_with(kScales)) {
      const size_t ending = (is_codes ? kWeight : kScales).size();
      const std::string module = name.substr(0, name.size() - ending), weight = module + std::string(kWeight);
      if (!checkpoint.weights.contains(weight))
        checkpoint.weights.emplace(weight, read_module(settings, checkpoint, module));
      has_codes = true;
    } else if (!name.ends_with(kFormat)) {
      checkpoint.weights.emplace(name, tensor);
    }
  }
  if (!has_codes) {
    fail(ErrorCode::kCorruptFile,
         "{} says load_in_8bit, but no tensor has a {} beside it: the weights are not quantized; remove "
         "quantization_config from the config",
         where, kScales);
  }
}

}  // namespace lowbit
