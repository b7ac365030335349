#include "base/fail.h"
#include "checkpoint/gptq.h"
#include "checkpoint/reorder.h"
#include "format/bits.h"
#include "lowbit/version.h"

#include <cstring>

namespace lowbit {
namespace {

// qzeros I32 [groups, packed_words(out, bits)]: zero points along the rows, less one in version 1.
Tensor packed_zeros(const std::string& module, const QuantizedTensor& weight, GptqVersion version) {
  const int64_t groups = weight.groups(), rows = weight.out_features;
  const uint8_t offset = version == GptqVersion::kV1 ? 1 : 0;
  Tensor qzeros = Tensor::allocate(DType::kI32, {groups, packed_words(rows, weight.bits)});
  const uint8_t middle = static_cast<uint8_t>(1 << (weight.bits - 1));
  std::vector<uint8_t> stored(static_cast<size_t>(rows), static_cast<uint8_t>(middle - offset));
  for (int64_t group = 0; group < groups; ++group) {
    if (!weight.zero_points.empty()) {
      const uint8_t* zeros = weight.zero_points.data<uint8_t>() + group * rows;
      for (int64_t row = 0; row < rows; ++row) {
        if (zeros[row] < offset) {
          fail(ErrorCode::kInvalidArgument,
               "[gptq] {}: the zero point of group {}, row {} is 0, which version 1 stores as -1; engines "
               "differ on that: "
               "write gptq_v2",
               module, group, row);
        }
        stored[static_cast<size_t>(row)] = static_cast<uint8_t>(zeros[row] - offset);
      }
    }
    pack_bits(stored.data(), 1, rows, weight.bits, qzeros.mutable_data<uint32_t>() + group * qzeros.size(1),
              1);
  }
  return qzeros;
}

}  // namespace

std::vector<NamedTensor> gptq_tensors(const std::string& module, const QuantizedTensor& weight,
                                      GptqVersion version) {
  const int64_t columns = weight.in_features;
  Tensor qweight = weight.codes;
  Tensor g_idx = Tensor::allocate(DType::kI32, {columns});
  int32_t* group_of = g_idx.mutable_data<int32_t>();
  if (weight.column_order.empty()) {
    for (int64_t column = 0; column < columns; ++column)
      group_of[column] = static_cast<int32_t>(column / weight.group_size);
  } else {
    const int32_t* order = weight.column_order.data<int32_t>();
    std::vector<int32_t> position_of(static_cast<size_t>(columns), 0);
    for (int64_t position = 0; position < columns; ++position) {
      position_of[static_cast<size_t>(order[position])] = static_cast<int32_t>(position);
      group_of[order[position]] = static_cast<int32_t>(position / weight.group_size);
    }
    qweight = reordered_codes(weight.codes, weight.bits, position_of);
  }
  return {{module + ".qweight", std::move(qweight)},
          {module + ".qzeros", packed_zeros(module, weight, version)},
          {module + ".scales", weight.scales},
          {module + ".g_idx", std::move(g_idx)}};
}

Json gptq_config_json(const GptqConfig& config) {
  const char* format = config.version == GptqVersion::kV1 ? "gptq" : "gptq_v2";
  Json meta = Json::object();
  meta.set("quantizer", Json::Array{std::string("lowbit:") + version()});
  if (config.meta.is_object()) {
    for (const auto& [key, value] : config.meta.as_object()) {
      if (key != "quantizer") meta.set(key, value);
    }
  }
  Json json = Json::object();
  json.set("bits", config.affine.bits);
  json.set("group_size", config.affine.group_size);
  json.set("damp_percent",
           std::stod(fmt::format("{}", config.damp_percent)));  // 0.05, not 0.05000000074505806
  json.set("desc_act", config.desc_act);
  json.set("static_groups", config.static_groups);
  json.set("sym", config.affine.sym);
  json.set("true_sequential", config.true_sequential);
  json.set("model_name_or_path", config.model_name_or_path);
  json.set("model_file_base_name", config.model_file_base_name);
  json.set("quant_method", "gptq");
  json.set("method", "gptq");
  json.set("checkpoint_format", format);
  json.set("format", format);
  json.set("pack_dtype", "int32");
  json.set("lm_head", config.lm_head);
  if (config.dynamic.is_object() && config.dynamic.size() > 0) json.set("dynamic", config.dynamic);
  json.set("meta", std::move(meta));
  return json;
}

}  // namespace lowbit
