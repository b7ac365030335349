#include "base/files.h"
#include "base/sha256.h"
#include "checkpoint/bnb.h"
#include "format/int8.h"
#include "support.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

// The goldens were made by reading the files plainly in Python (material/peers/README.md).
TEST(BnbReadInt8, EveryPeerFileOfEightBitsDecodesToItsGolden) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int matrices = 0;
  for (const char* folder : {"tiny-int8", "bloom-int8"}) {
    SCOPED_TRACE(folder);
    const fs::path path = material / "peers" / "bnb" / folder;
    const Checkpoint checkpoint = read_checkpoint(path);
    const Json golden = parse_json(read_file(path / "golden.json"), "golden.json", {.allow_nan = true});
    ASSERT_TRUE(checkpoint.quantization.has_value());
    EXPECT_EQ(checkpoint.quantization->dialect, "bitsandbytes");
    for (const auto& [name, hash] : golden.get("dequant_weight_sha256_f32").as_object()) {
      const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at(name));
      EXPECT_EQ(weight.activations, ActivationFormat::kInt8Dynamic);
      EXPECT_EQ(weight.outlier_threshold, 6);
      const Tensor dense = dequantized(weight);
      Sha256 sum;
      sum.append(dense.bytes(), dense.byte_count());
      EXPECT_EQ(sum.finish(), hash.as_string()) << name;
      ++matrices;
    }
    for (const auto& [name, weight] : checkpoint.weights)
      EXPECT_TRUE(std::holds_alternative<QuantizedTensor>(weight) ||
                  is_floating(std::get<Tensor>(weight).dtype()))
          << name;
  }
  EXPECT_EQ(matrices, 14 + 8);
}

// Against bitsandbytes 0.50.2 on the CPU: scales and codes to the byte.
TEST(BnbReadInt8, RawTensorsAreEncodedToTheByte) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  std::map<std::string, Tensor> tensors;
  for (const NamedTensor& named :
       open_safetensors(material / "peers" / "bnb" / "raw" / "int8.safetensors").tensors)
    tensors.emplace(named.name, named.tensor);
  int64_t compared = 0;
  for (const char* matrix : {"weight", "act", "act_one_row", "ties_absmax127"}) {
    for (const char* dtype : {"fp32", "bf16", "fp16"}) {
      const std::string name = fmt::format("{}.{}", matrix, dtype);
      SCOPED_TRACE(name);
      const Tensor values = converted(tensors.at(name + ".input"), DType::kF32);
      const auto in = static_cast<size_t>(values.size(1));
      std::vector<int8_t> codes(in);
      for (int64_t row = 0; row < values.size(0); ++row) {
        const std::span<const float> x(values.data<float>() + row * values.size(1), in);
        const float largest = largest_magnitude(x);
        encode_int8(x, int8_factor(largest), codes.data());
        EXPECT_EQ(largest, tensors.at(name + ".thr0.row_absmax").data<float>()[row]);
        EXPECT_EQ(
            std::memcmp(codes.data(), tensors.at(name + ".thr0.q").data<int8_t>() + row * values.size(1), in),
            0)
            << row;
        compared += values.size(1);
      }
    }
  }
  EXPECT_EQ(compared, 3 * 96 * (64 + 12 + 1 + 1));
}

// A folder with one matrix [3, 5].
struct Folder {
  testing::TemporaryFolder folder;
  std::string config =
      R"({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_threshold": 4.5}})";
  std::map<std::string, Tensor> tensors;

  Folder() {
    Tensor codes = Tensor::allocate(DType::kI8, {3, 5}), scales = Tensor::allocate(DType::kF32, {3});
    for (int i = 0; i < 15; ++i) codes.mutable_data<int8_t>()[i] = static_cast<int8_t>(i * 17 - 119);
    for (int i = 0; i < 3; ++i) scales.mutable_data<float>()[i] = static_cast<float>(i);
    tensors = {{"m.weight", codes},
               {"m.SCB", scales},
               {"m.weight_format", Tensor::zeros(DType::kU8, {})},
               {"m.bias", Tensor::zeros(DType::kF16, {3})}};
  }

  Checkpoint read() {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor});
    write_safetensors(folder.path() / "model.safetensors", all);
    write_file_atomically(folder.path() / "config.json", config);
    return read_checkpoint(folder.path());
  }
  std::string refusal(ErrorCode code = ErrorCode::kCorruptFile) {
    return testing::error_of(code, [&] { read(); });
  }
};

void expect_parts(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
}

TEST(BnbReadInt8, TheThresholdIsTheConfigs) {
  Folder folder;
  for (const bool has_format : {true, false}) {  // old files have no weight_format
    if (!has_format) folder.tensors.erase("m.weight_format");
    const Checkpoint checkpoint = folder.read();
    EXPECT_EQ(checkpoint.weights.size(), 2u);
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    EXPECT_EQ(weight.outlier_threshold, 4.5f);
    EXPECT_EQ(dequantized(weight).data<float>()[6], 1.0f / 127 * (6 * 17 - 119));
  }
}

TEST(BnbReadInt8, BrokenFilesAreRefusedByTheNameOfTheTensor) {
  for (const char* name : {"m.weight", "m.SCB"}) {
    Folder folder;
    folder.tensors.erase(name);
    expect_parts(folder.refusal(), {name, "missing"});
  }
  const auto with = [](const std::string& name, const Tensor& tensor) {
    Folder folder;
    folder.tensors[name] = tensor;
    return folder;
  };
  expect_parts(with("m.weight", Tensor::zeros(DType::kF16, {3, 5})).refusal(), {"m.weight", "F16", "I8"});
  expect_parts(with("m.weight", Tensor::zeros(DType::kI8, {15})).refusal(), {"m.weight", "[15]", "matrix"});
  expect_parts(with("m.SCB", Tensor::zeros(DType::kF32, {4})).refusal(), {"m.SCB", "[4]", "3 elements"});
  expect_parts(with("m.SCB", Tensor::zeros(DType::kF16, {3})).refusal(), {"m.SCB", "F16", "F32"});
  expect_parts(with("m.weight_format", Tensor::zeros(DType::kU8, {2})).refusal(), {"m.weight_format", "[2]"});
  for (const float bad : {-1.0f, std::nanf(""), INFINITY}) {
    Folder folder;
    folder.tensors["m.SCB"].mutable_data<float>()[1] = bad;
    expect_parts(folder.refusal(), {"m.SCB", "scale 1 of 3"});
  }
  for (const auto& [layout, name] : {std::pair{1, "col32"}, {2, "col_turing"}, {3, "col_ampere"}, {9, "9"}}) {
    Folder folder;
    folder.tensors["m.weight_format"].mutable_data<uint8_t>()[0] = static_cast<uint8_t>(layout);
    expect_parts(folder.refusal(ErrorCode::kUnsupported), {"m.weight_format", name, "save the model again"});
  }
  Folder dense;
  dense.tensors = {{"m.weight", Tensor::zeros(DType::kF16, {3, 5})}};
  expect_parts(dense.refusal(), {"load_in_8bit", "not quantized"});
}

TEST(BnbReadInt8, WrongConfigsAreRefusedByTheirKey) {
  for (const auto& [from, to, part] :
       std::initializer_list<std::tuple<const char*, const char*, const char*>>{
           {"4.5", "-1", "llm_int8_threshold"},
           {"4.5", "\"6\"", "llm_int8_threshold"},
           {"4.5", "1e999", ""},
           {"true", "true, \"load_in_4bit\": true", "both"},
           {"true", "3", "load_in_8bit"}}) {
    Folder folder;
    folder.config.replace(folder.config.find(from), std::string(from).size(), to);
    expect_parts(folder.refusal(), {part});
  }
  Folder folder;
  folder.config.replace(folder.config.find("true"), 4, "true, \"llm_int8_has_fp16_weight\": true");
  expect_parts(folder.refusal(ErrorCode::kUnsupported), {"llm_int8_has_fp16_weight"});
}

}  // namespace
}  // namespace lowbit
