#include "checkpoint/lowbit_dialect.h"

#include "format/bits.h"
#include "io/safetensors.h"
#include "support.h"

#include <cmath>
#include <fstream>
#include <gtest/gtest.h>
#include <random>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

QuantizedTensor weight_of(const LowbitSettings& settings, int64_t group_size) {
  constexpr int64_t kOut = 3, kIn = 50;
  QuantizedTensor weight{.format = settings.format,
                         .bits = settings.bits,
                         .group_size = group_size < 0 ? kIn : group_size,
                         .out_features = kOut,
                         .in_features = kIn};
  weight.codes = Tensor::zeros(DType::kI32, {packed_words(kIn, settings.bits), kOut});
  weight.scales = Tensor::allocate(DType::kF32, {weight.groups(), kOut});
  if (settings.format == Format::kLog2) weight.codebook = log_codebook({settings.bits, settings.log_base});
  std::mt19937 random(1);
  for (int64_t row = 0; row < kOut; ++row) {
    std::vector<uint8_t> codes(kIn);
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(random() & ((1u << settings.bits) - 1u));
      if (!std::isfinite(codebook_of(weight)[code])) code = 1;
    }
    pack_bits(codes.data(), 1, kIn, settings.bits, weight.codes.mutable_data<uint32_t>() + row, kOut);
  }
  for (int64_t i = 0; i < weight.scales.element_count(); ++i)
    weight.scales.mutable_data<float>()[i] = static_cast<float>(i + 1) / 8;
  return weight;
}

struct Model {
  TemporaryFolder folder;
  LowbitSettings settings;
  std::vector<NamedTensor> tensors;

  Model(LowbitSettings given, std::vector<std::pair<std::string, int64_t>> modules = {{"a", 0}})
      : settings(std::move(given)) {
    for (const auto& [module, own] : modules) {
      const int64_t size = own == 0 ? settings.group_size : own;
      if (own != 0) settings.group_sizes.emplace(module, own);
      for (NamedTensor& tensor : lowbit_tensors(module, weight_of(settings, size)))
        tensors.push_back(std::move(tensor));
    }
    Tensor dense = Tensor::zeros(DType::kF32, {2, 2});
    tensors.push_back({"norm.weight", dense});
  }
  void write(const Json& quantization) const {
    Json config = Json::object();
    config.set("quantization_config", quantization);
    std::ofstream(folder.path() / "config.json") << config.dump();
    write_safetensors(folder.path() / "model.safetensors", tensors);
  }
  Checkpoint read() const {
    write(lowbit_config_json(settings));
    return read_checkpoint(folder.path());
  }
  std::string error(ErrorCode code) const {
    return error_of(code, [&] { read_checkpoint(folder.path()); });
  }
};

std::vector<LowbitSettings> all_settings() {
  return {{.format = Format::kNf4, .bits = 4, .group_size = 16},
          {.format = Format::kFp4, .bits = 4, .group_size = 16},
          {.format = Format::kFp8, .bits = 8, .group_size = -1},
          {.format = Format::kFp8E5m2, .bits = 8, .group_size = 20},
          {.format = Format::kLog2, .bits = 3, .group_size = 32, .log_base = 1.7f},
          {.format = Format::kLog2, .bits = 5, .group_size = 32, .log_base = 1.3f},
          {.format = Format::kLog2, .bits = 8, .group_size = 7, .log_base = 1.0905077f}};
}

TEST(LowbitDialect, ReadsWhatItWroteToTheBit) {
  for (const LowbitSettings& settings : all_settings()) {
    SCOPED_TRACE(fmt::format("{} {}", format_name(settings.format), settings.bits));
    const Model model(settings, {{"a", 0}, {"layers.0.b", 10}});
    const Checkpoint checkpoint = model.read();
    EXPECT_EQ(checkpoint.quantization->dialect, "lowbit");
    EXPECT_EQ(checkpoint.weights.size(), 3u);
    for (const auto& [module, size] :
         {std::pair<std::string, int64_t>{"a", settings.group_size}, {"layers.0.b", 10}}) {
      const auto& read = std::get<QuantizedTensor>(checkpoint.weights.at(module + ".weight"));
      const QuantizedTensor expected = weight_of(settings, size);
      EXPECT_EQ(read.format, settings.format);
      EXPECT_EQ(read.group_size, expected.group_size);
      const Tensor a = dequantized(read), b = dequantized(expected);
      ASSERT_EQ(a.byte_count(), b.byte_count());
      EXPECT_EQ(std::memcmp(a.bytes(), b.bytes(), a.byte_count()), 0);
    }
    const LowbitSettings again = read_lowbit_settings(checkpoint.quantization->config, "test");
    EXPECT_EQ(lowbit_config_json(again).dump(), checkpoint.quantization->config.dump());
    EXPECT_EQ(again.log_base, settings.format == Format::kLog2 ? settings.log_base : 2.0f);
  }
}

TEST(LowbitDialect, BadConfigsAreOneClearError) {
  const Model model(all_settings()[5]);
  struct Bad {
    const char *key, *value, *says;
    ErrorCode code;
  };
  for (const Bad& bad : {Bad{"version", "2", "version is 2", ErrorCode::kUnsupported},
                         {"version", "\"1\"", "whole number", ErrorCode::kCorruptFile},
                         {"format", "\"log3\"", "log3", ErrorCode::kUnsupported},
                         {"format", "\"affine\"", "fp8_e5m2", ErrorCode::kUnsupported},
                         {"format", "\"nf4\"", "bits is 5, expected 4", ErrorCode::kCorruptFile},
                         {"bits", "9", "3 to 8", ErrorCode::kCorruptFile},
                         {"bits", "6", "a.codes", ErrorCode::kCorruptFile},
                         {"group_size", "0", "group_size", ErrorCode::kCorruptFile},
                         {"group_size", "16", "a.scales", ErrorCode::kCorruptFile},
                         {"log_base", "1", "log_base", ErrorCode::kCorruptFile},
                         {"log_base", "\"2\"", "a number", ErrorCode::kCorruptFile},
                         {"group_sizes", "[]", "group_sizes", ErrorCode::kCorruptFile},
                         {"group_sizes", "{\"c\": 8}", "names c", ErrorCode::kCorruptFile}}) {
    Json config = lowbit_config_json(model.settings);
    config.set(bad.key, parse_json(bad.value, "test"));
    model.write(config);
    EXPECT_NE(model.error(bad.code).find(bad.says), std::string::npos) << bad.key << " " << bad.value;
  }
  for (const char* key : {"version", "format", "bits", "group_size", "log_base"}) {
    Json config = lowbit_config_json(model.settings);
    config.erase(key);
    model.write(config);
    EXPECT_NE(model.error(ErrorCode::kCorruptFile).find(key), std::string::npos) << key;
  }
}

TEST(LowbitDialect, BadTensorsAreNamed) {
  auto after = [](const LowbitSettings& settings, const auto& change) {
    Model model(settings);
    change(model.tensors);
    model.write(lowbit_config_json(model.settings));
    return model.error(ErrorCode::kCorruptFile);
  };
  const LowbitSettings log2 = all_settings()[5], fp8 = all_settings()[2];
  using Tensors = std::vector<NamedTensor>;
  EXPECT_NE(after(log2, [](Tensors& t) { t.erase(t.begin() + 1); }).find("a.scales is missing"),
            std::string::npos);
  EXPECT_NE(after(log2, [](Tensors& t) { t.erase(t.begin() + 2); }).find("a.shape is missing"),
            std::string::npos);
  EXPECT_NE(after(log2, [](Tensors& t) { t.erase(t.begin(), t.begin() + 3); }).find("not quantized"),
            std::string::npos);
  EXPECT_NE(after(log2,
                  [](Tensors& t) {
                    t[0].tensor = Tensor::zeros(DType::kI32, {8, 4});
                  })
                .find("a.codes"),
            std::string::npos);
  EXPECT_NE(after(log2,
                  [](Tensors& t) {
                    t[1].tensor = Tensor::zeros(DType::kF16, {2, 3});
                  })
                .find("F16"),
            std::string::npos);
  EXPECT_NE(after(log2, [](Tensors& t) { t[1].tensor.mutable_data<float>()[3] = NAN; }).find("scale 3"),
            std::string::npos);
  EXPECT_NE(after(log2, [](Tensors& t) { t[2].tensor.mutable_data<int64_t>()[0] = -3; }).find("[-3, 50]"),
            std::string::npos);
  // Codes that are no numbers: the kernels would make some of them.
  const auto poison = [](Tensors& t) { t[0].tensor.mutable_data<uint32_t>()[4] = 0x017f0203; };
  EXPECT_NE(after(fp8, poison).find("no number"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
