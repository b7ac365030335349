// For tests: small GPTQ checkpoints made from random codes, written tensor by tensor so that each can be
// spoiled.
#pragma once

#include "checkpoint/gptq.h"
#include "format/affine.h"
#include "format/bits.h"
#include "support.h"
#include "tensor/half.h"

#include <cstring>
#include <random>

namespace lowbit::testing {

inline QuantizedTensor random_weight(int64_t rows, int64_t columns, AffineOptions options,
                                     unsigned seed = 1) {
  std::mt19937 random(seed);
  QuantizedTensor weight;
  weight.bits = options.bits;
  weight.group_size = std::min(columns, effective_group_size(columns, options.group_size));
  weight.out_features = rows;
  weight.in_features = columns;
  weight.codes = Tensor::zeros(DType::kI32, {packed_words(columns, options.bits), rows});
  const uint32_t codes = 1u << options.bits;
  std::vector<uint8_t> line(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; ++row) {
    for (uint8_t& code : line) code = static_cast<uint8_t>(random() % codes);
    pack_bits(line.data(), 1, columns, options.bits, weight.codes.mutable_data<uint32_t>() + row, rows);
  }
  weight.scales = Tensor::zeros(DType::kF16, {weight.groups(), rows});
  for (int64_t i = 0; i < weight.scales.element_count(); ++i) {
    weight.scales.mutable_data<uint16_t>()[i] =
        float_to_f16(0.01f + static_cast<float>(random() % 1000) / 1e5f);
  }
  if (!options.sym) {
    weight.zero_points = Tensor::zeros(DType::kU8, {weight.groups(), rows});
    for (int64_t i = 0; i < weight.zero_points.element_count(); ++i) {
      weight.zero_points.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(1 + random() % (codes - 1));
    }
  }
  return weight;
}

// A folder with one quantized module "model.layers.0.mlp.up_proj" and an embedding; edit config and tensors,
// then read.
struct GptqFolder {
  TemporaryFolder folder;
  Json config = Json(Json::Object{{"model_type", "llama"}, {"tie_word_embeddings", true}});
  Json quantization;
  std::vector<NamedTensor> tensors;
  std::string base_name = "model";
  QuantizedTensor weight;
  static constexpr const char* kModule = "model.layers.0.mlp.up_proj";

  explicit GptqFolder(AffineOptions options = {}, GptqVersion version = GptqVersion::kV1, int64_t rows = 64,
                      int64_t columns = 256) {
    weight = random_weight(rows, columns, options);
    tensors = gptq_tensors(kModule, weight, version);
    tensors.push_back({"model.embed_tokens.weight", Tensor::zeros(DType::kBF16, {8, columns})});
    GptqConfig settings;
    settings.affine = options;
    settings.version = version;
    quantization = gptq_config_json(settings);
  }

  Tensor& tensor(const std::string& suffix) {
    for (NamedTensor& named : tensors) {
      if (named.name == kModule + suffix) {
        Tensor copy = Tensor::zeros(named.tensor.dtype(), named.tensor.shape());
        std::memcpy(copy.mutable_bytes(), named.tensor.bytes(), copy.byte_count());
        return named.tensor = copy;
      }
    }
    tensors.push_back({kModule + suffix, {}});
    return tensors.back().tensor;
  }
  void remove(const std::string& suffix) {
    std::erase_if(tensors, [&](const NamedTensor& named) { return named.name == kModule + suffix; });
  }
  void write() {
    write_safetensors(folder.path() / (base_name + ".safetensors"), tensors);
    if (!quantization.is_null()) config.set("quantization_config", quantization);
    write_file_atomically(folder.path() / "config.json", config.dump(2));
  }
  Checkpoint read() {
    write();
    return read_checkpoint(folder.path());
  }
  const QuantizedTensor& read_weight(const Checkpoint& checkpoint) {
    return std::get<QuantizedTensor>(checkpoint.weights.at(std::string(kModule) + ".weight"));
  }
  std::string refusal(ErrorCode code) {
    write();
    return error_of(code, [&] { read_checkpoint(folder.path()); });
  }
};

inline bool equal_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.byte_count()) == 0;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline bool has_note(const Checkpoint& checkpoint, const std::string& part) {
  for (const std::string& note : checkpoint.notes) {
    if (note.find(part) != std::string::npos) return true;
  }
  return false;
}

}  // namespace lowbit::testing

#define EXPECT_CONTAINS(text, part) \
  EXPECT_PRED2(::lowbit::testing::contains, std::string(text), std::string(part))
