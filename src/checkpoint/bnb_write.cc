#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "format/codebook.h"
#include "format/nested_scales.h"

#include <cstring>

namespace lowbit {
namespace {

std::string_view checked_name(DType dtype) {
  if (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32) {
    fail(ErrorCode::kUnsupported, "bitsandbytes quantizes BF16, F16 and F32 weights, not {}",
         dtype_name(dtype));
  }
  return torch_name(dtype);
}

template <class T>
Tensor vector_of(DType dtype, std::span<const T> values) {
  Tensor tensor = Tensor::allocate(dtype, {static_cast<int64_t>(values.size())});
  std::memcpy(tensor.mutable_bytes(), values.data(), values.size_bytes());
  return tensor;
}

}  // namespace

Shape bnb_codes_shape(const BnbMatrix& matrix, DType storage) {
  const int64_t bytes = (matrix.out_features * matrix.in_features + 1) / 2,
                element = static_cast<int64_t>(dtype_size(storage));
  if (bytes % element != 0) {
    fail(ErrorCode::kUnsupported,
         "{} [{}, {}] has {} bytes of codes, which bnb_4bit_quant_storage cannot spell as numbers of {} "
         "bytes: leave it at uint8, or the module out",
         matrix.module, matrix.out_features, matrix.in_features, bytes, element);
  }
  return {bytes / element, 1};
}

std::vector<NamedTensor> bnb_tensors_beside(const BnbMatrix& matrix, std::span<const float> scales) {
  const std::string weight = matrix.module + ".weight";
  // As Python's json.dumps writes it.
  std::string state =
      fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])",
                  format_name(matrix.format), matrix.group_size, checked_name(matrix.dtype),
                  matrix.out_features, matrix.in_features);
  std::vector<NamedTensor> tensors;
  if (matrix.nested) {
    const NestedScales nested_scales = nested(scales, mean_of(scales), *matrix.nested);
    tensors.push_back({weight + ".absmax", vector_of<uint8_t>(DType::kU8, nested_scales.codes)});
    tensors.push_back({weight + ".nested_absmax", vector_of<float>(DType::kF32, nested_scales.outer_scales)});
    tensors.push_back({weight + ".nested_quant_map", vector_of<float>(DType::kF32, nested_scales.map)});
    state += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})",
                         NestedScales::kGroupSize, double{nested_scales.offset});
  } else {
    tensors.push_back({weight + ".absmax", vector_of<float>(DType::kF32, scales)});
  }
  state += "}";
  tensors.push_back({weight + ".quant_map", vector_of<float>(DType::kF32, codebook_of(matrix.format))});
  tensors.push_back({weight + ".quant_state.bitsandbytes__" + std::string(format_name(matrix.format)),
                     vector_of<char>(DType::kU8, state)});
  return tensors;
}

std::vector<NamedTensor> bnb_int8_tensors_beside(const std::string& module, std::span<const float> sizes) {
  Tensor row_format = Tensor::allocate(DType::kU8, {});
  row_format.mutable_data<uint8_t>()[0] = kBnbRowFormat;
  return {{module + ".SCB", vector_of<float>(DType::kF32, sizes)}, {module + ".weight_format", row_format}};
}

Json bnb_config_json(const BnbSettings& settings, Json skip_modules) {
  const bool is_int8 = settings.format == Format::kInt8;
  return Json::Object{{"_load_in_4bit", !is_int8},
                      {"_load_in_8bit", is_int8},
                      {"bnb_4bit_compute_dtype", checked_name(settings.compute_dtype)},
                      {"bnb_4bit_quant_storage",
                       settings.quant_storage == DType::kU8 ? "uint8" : torch_name(settings.quant_storage)},
                      {"bnb_4bit_quant_type", format_name(is_int8 ? Format::kFp4 : settings.format)},
                      {"bnb_4bit_use_double_quant", settings.use_double_quant},
                      {"llm_int8_enable_fp32_cpu_offload", false},
                      {"llm_int8_has_fp16_weight", false},
                      {"llm_int8_skip_modules", std::move(skip_modules)},
                      {"llm_int8_threshold", double{settings.llm_int8_threshold}},
                      {"load_in_4bit", !is_int8},
                      {"load_in_8bit", is_int8},
                      {"quant_method", "bitsandbytes"}};
}

}  // namespace lowbit
