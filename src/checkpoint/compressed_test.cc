#include "checkpoint/compressed.h"

#include "base/files.h"
#include "format/int8.h"
#include "support.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

void expect_parts(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
}

// A folder with one matrix [3, 6], written by the functions under test.
struct Folder {
  testing::TemporaryFolder folder;
  Json config;
  std::map<std::string, Tensor> tensors;
  Tensor codes = Tensor::allocate(DType::kI8, {3, 6});

  explicit Folder(ActivationFormat activations) {
    for (int i = 0; i < 18; ++i) codes.mutable_data<int8_t>()[i] = static_cast<int8_t>(i * 15 - 128);
    const CompressedMatrix matrix{"m", activations, DType::kBF16, 6};
    tensors.emplace(compressed_codes(matrix, 3).name, compressed_code_bytes(matrix, codes));
    for (const NamedTensor& named : compressed_tensors_beside(matrix, std::vector<float>{0.5f, 0, 2}))
      tensors.emplace(named.name, named.tensor);
    tensors.emplace("head.weight", Tensor::zeros(DType::kBF16, {2, 2}));
    config = Json::Object{
        {"model_type", "llama"},
        {"quantization_config", compressed_config_json({.activations = activations}, Json::Array{"head"})}};
  }

  Checkpoint read() {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor});
    write_safetensors(folder.path() / "model.safetensors", all);
    write_file_atomically(folder.path() / "config.json", config.dump());
    return read_checkpoint(folder.path());
  }
  std::string refusal(ErrorCode code = ErrorCode::kCorruptFile) {
    return testing::error_of(code, [&] { read(); });
  }
  std::string refusal_with(const std::string& from, const std::string& to) {
    std::string text = config.dump();
    const size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    config = parse_json(text.replace(at, from.size(), to), "config");
    return refusal(ErrorCode::kUnsupported);
  }
};

constexpr ActivationFormat kBoth[] = {ActivationFormat::kNone, ActivationFormat::kInt8Dynamic};

TEST(Compressed, WhatIsWrittenIsRead) {
  for (const ActivationFormat activations : kBoth) {
    Folder folder(activations);
    const Checkpoint checkpoint = folder.read();
    EXPECT_EQ(checkpoint.weights.size(), 2u);
    EXPECT_EQ(checkpoint.quantization->dialect, "compressed-tensors");
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    EXPECT_EQ(weight.format, Format::kInt8);
    EXPECT_EQ(weight.activations, activations);
    EXPECT_EQ(weight.outlier_threshold, 0);
    const Tensor dense = dequantized(weight);
    constexpr float kScales[] = {0.5f, 0, 2};
    for (int i = 0; i < 18; ++i)
      EXPECT_EQ(dense.data<float>()[i], kScales[i / 6] * static_cast<float>(i * 15 - 128)) << i;
  }
}

// tests/golden/make_compressed_golden.py: the package compressed-tensors 0.20.1 made the files, and the
// weights as it decompresses them, in BF16.
TEST(Compressed, FilesOfThePackageDecodeAsItDoes) {
  for (const char* name : {"w8a8", "w8a16"}) {
    SCOPED_TRACE(name);
    const fs::path folder = fs::path(LOWBIT_SOURCE_DIR) / "tests" / "golden" / "compressed" / name;
    const Checkpoint checkpoint = read_checkpoint(folder);
    ASSERT_EQ(checkpoint.weights.size(), 1u);
    const auto& weight = std::get<QuantizedTensor>(checkpoint.weights.at("m.weight"));
    EXPECT_EQ(weight.activations,
              name == std::string("w8a8") ? ActivationFormat::kInt8Dynamic : ActivationFormat::kNone);
    const Tensor ours = converted(dequantized(weight), DType::kBF16);
    const Tensor theirs = open_safetensors(folder / "golden.safetensors").tensors.at(0).tensor;
    ASSERT_EQ(ours.shape(), theirs.shape());
    EXPECT_EQ(std::memcmp(ours.bytes(), theirs.bytes(), ours.byte_count()), 0);
  }
}

// Scales may be one for the matrix, of any float type, and zero points may be there as long as they are 0;
// the config may stand under the key of old versions.
TEST(Compressed, OtherSpellingsAreRead) {
  Folder folder(ActivationFormat::kInt8Dynamic);
  Tensor scale = Tensor::allocate(DType::kF32, {1});
  scale.mutable_data<float>()[0] = 0.25f;
  folder.tensors["m.weight_scale"] = scale;
  folder.tensors["m.weight_zero_point"] = Tensor::zeros(DType::kI8, {1});
  folder.config.set("compression_config", folder.config.get("quantization_config"));
  folder.config.erase("quantization_config");
  const Checkpoint checkpoint = folder.read();
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  EXPECT_EQ(checkpoint.config.find("compression_config"), nullptr);
  const Tensor dense = dequantized(std::get<QuantizedTensor>(checkpoint.weights.at("m.weight")));
  EXPECT_EQ(dense.data<float>()[17], 0.25f * (17 * 15 - 128));
}

TEST(Compressed, OtherSchemesAreRefusedByTheirKey) {
  const auto refusal = [](const char* from, const char* to) {
    return Folder(ActivationFormat::kInt8Dynamic).refusal_with(from, to);
  };
  expect_parts(refusal("\"num_bits\": 8", "\"num_bits\": 4"), {"group_0", "input_activations", "none"});
  expect_parts(refusal("\"strategy\": \"channel\"", "\"strategy\": \"group\""),
               {"weights", "then a group_size"});
  expect_parts(refusal("\"dynamic\": true", "\"dynamic\": false"), {"input_activations", "dynamic"});
  expect_parts(refusal("\"symmetric\": true", "\"symmetric\": false"), {"symmetric"});
  expect_parts(refusal("\"int-quantized\", \"ignore\"", "\"nvfp4-pack-quantized\", \"ignore\""),
               {"format is \"nvfp4-pack-quantized\"", "float-quantized"});
  expect_parts(refusal("\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {}"), {"kv_cache_scheme"});
  Folder empty(ActivationFormat::kNone);
  empty.config.set("quantization_config",
                   Json::Object{{"quant_method", "compressed-tensors"}, {"config_groups", Json::Object{}}});
  expect_parts(empty.refusal(), {"config_groups"});
}

TEST(Compressed, BrokenFilesAreRefusedByTheNameOfTheTensor) {
  for (const char* name : {"m.weight_packed", "m.weight_shape", "m.weight_scale"}) {
    Folder folder(ActivationFormat::kNone);
    folder.tensors.erase(name);
    expect_parts(folder.refusal(), {name == std::string("m.weight_packed")  ? "m.weight is missing"
                                    : name == std::string("m.weight_scale") ? "not quantized"
                                                                            : "m.weight_shape is missing"});
  }
  const auto with = [](ActivationFormat activations, const std::string& name, const Tensor& tensor) {
    Folder folder(activations);
    folder.tensors[name] = tensor;
    return folder.refusal();
  };
  const auto none = ActivationFormat::kNone, dynamic = ActivationFormat::kInt8Dynamic;
  expect_parts(with(none, "m.weight_packed", Tensor::zeros(DType::kI32, {3, 1})),
               {"m.weight_packed", "[3, 1]"});
  expect_parts(with(none, "m.weight_shape", Tensor::zeros(DType::kI64, {2})), {"m.weight_packed", "[0, 0]"});
  expect_parts(with(none, "m.weight_shape", Tensor::zeros(DType::kF32, {2})), {"m.weight_shape", "F32"});
  expect_parts(with(dynamic, "m.weight", Tensor::zeros(DType::kU8, {3, 6})), {"m.weight", "U8", "I8"});
  expect_parts(with(dynamic, "m.weight_scale", Tensor::zeros(DType::kF32, {2, 1})),
               {"m.weight_scale", "[2, 1]"});
  expect_parts(with(dynamic, "m.weight_scale", Tensor::zeros(DType::kI32, {3, 1})),
               {"m.weight_scale", "I32"});
  Tensor ones = Tensor::zeros(DType::kI8, {3, 1});
  ones.mutable_data<int8_t>()[2] = 1;
  expect_parts(with(dynamic, "m.weight_zero_point", ones), {"m.weight_zero_point", "symmetric"});
  Tensor infinite = Tensor::zeros(DType::kF32, {3, 1});
  infinite.mutable_data<float>()[1] = INFINITY;
  expect_parts(with(dynamic, "m.weight_scale", infinite), {"m.weight_scale", "scale 1 of 3"});
}

}  // namespace
}  // namespace lowbit
