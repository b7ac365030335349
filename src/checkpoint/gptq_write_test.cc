#include "checkpoint/gptq_fixture.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::equal_bytes;
using testing::error_of;
using testing::GptqFolder;
using testing::random_weight;

uint32_t word(const Tensor& tensor, int64_t i) { return tensor.data<uint32_t>()[i]; }

// The anchors of research on the format: what every writer stores for symmetric zero points.
TEST(GptqWrite, SymmetricZerosAreThePublishedWords) {
  const std::pair<int, std::pair<std::vector<uint32_t>, std::vector<uint32_t>>> cases[] = {
      {2, {{0x55555555}, {0xAAAAAAAA}}},
      {3, {{0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D}, {0x24924924, 0x49249249, 0x92492492}}},
      {4, {{0x77777777}, {0x88888888}}},
      {8, {{0x7F7F7F7F}, {0x80808080}}}};
  for (const auto& [bits, words] : cases) {
    const QuantizedTensor weight = random_weight(32, 64, {.bits = bits, .group_size = 32});
    const auto v1 = gptq_tensors("m", weight, GptqVersion::kV1),
               v2 = gptq_tensors("m", weight, GptqVersion::kV2);
    ASSERT_EQ(v1[1].name, "m.qzeros");
    for (size_t i = 0; i < words.first.size(); ++i) {
      EXPECT_EQ(word(v1[1].tensor, static_cast<int64_t>(i)), words.first[i]) << bits;
      EXPECT_EQ(word(v2[1].tensor, static_cast<int64_t>(i)), words.second[i]) << bits;
    }
  }
}

TEST(GptqWrite, QuantizedTensorsReadBackForAllBitsGroupsAndVersions) {
  for (int bits : {2, 3, 4, 8}) {
    for (int group_size : {-1, 32, 128, 96, 1000}) {  // 96: a short last group; 1000: more than the row has
      for (bool sym : {true, false}) {
        for (GptqVersion version : {GptqVersion::kV1, GptqVersion::kV2}) {
          SCOPED_TRACE(fmt::format("{} bits, group {}, {}, v{}", bits, group_size, sym,
                                   version == GptqVersion::kV1 ? 1 : 2));
          GptqFolder folder({.bits = bits, .group_size = group_size, .sym = sym}, version);
          const Checkpoint checkpoint = folder.read();
          const QuantizedTensor& read = folder.read_weight(checkpoint);
          EXPECT_TRUE(equal_bytes(dequantized(read), dequantized(folder.weight)));
          EXPECT_EQ(read.zero_points.empty(), sym);
          EXPECT_FALSE(read.codes.is_writable());  // in place, in the mapped file
          EXPECT_FALSE(read.scales.is_writable());
          const char* stored = version == GptqVersion::kV1 ? "gptq" : "gptq_v2";
          EXPECT_EQ(checkpoint.quantization->found_version, sym ? stored : "");
          EXPECT_TRUE(checkpoint.notes.empty()) << checkpoint.notes[0];
          const std::vector<NamedTensor> again = gptq_tensors(GptqFolder::kModule, read, version);
          for (size_t i = 0; i < again.size(); ++i)
            EXPECT_TRUE(equal_bytes(again[i].tensor, folder.tensors[i].tensor));
        }
      }
    }
  }
}

TEST(GptqWrite, ActOrderSurvivesTheFile) {
  for (int bits : {2, 3, 4, 8}) {
    for (int group_size : {32, 96}) {
      QuantizedTensor weight = random_weight(64, 256, {.bits = bits, .group_size = group_size, .sym = false});
      std::vector<int32_t> order(256);
      for (int i = 0; i < 256; ++i)
        order[static_cast<size_t>(i)] = (i * 77 + 5) % 256;  // 77 is odd: a permutation
      weight.column_order = Tensor::allocate(DType::kI32, {256});
      std::memcpy(weight.column_order.mutable_bytes(), order.data(), 1024);
      GptqFolder folder({.bits = bits, .group_size = group_size, .sym = false});
      folder.tensors = gptq_tensors(GptqFolder::kModule, weight, GptqVersion::kV1);
      EXPECT_EQ(folder.tensors[3].tensor.data<int32_t>()[order[40]], 40 / group_size);
      const Checkpoint checkpoint = folder.read();
      const QuantizedTensor& read = folder.read_weight(checkpoint);
      EXPECT_EQ(checkpoint.quantization->group_order, "act-order");
      EXPECT_TRUE(equal_bytes(dequantized(read), dequantized(weight)));
      const std::vector<NamedTensor> again = gptq_tensors(GptqFolder::kModule, read, GptqVersion::kV1);
      for (size_t i = 0; i < again.size(); ++i)
        EXPECT_TRUE(equal_bytes(again[i].tensor, folder.tensors[i].tensor));
    }
  }
}

TEST(GptqWrite, AZeroPointOfZeroGoesIntoVersionTwoOnly) {
  QuantizedTensor weight = random_weight(32, 64, {.bits = 4, .group_size = 32, .sym = false});
  weight.zero_points.mutable_data<uint8_t>()[32 + 7] = 0;
  const std::string message =
      error_of(ErrorCode::kInvalidArgument, [&] { gptq_tensors("m.q", weight, GptqVersion::kV1); });
  EXPECT_CONTAINS(message, "m.q: the zero point of group 1, row 7 is 0");
  EXPECT_EQ(word(gptq_tensors("m.q", weight, GptqVersion::kV2)[1].tensor, 4) >> 28, 0u);
}

// Reading and writing again gives the bytes of the peers' files, and the other version's zero points.
TEST(GptqWrite, PeerFilesAreReproducedByteForByte) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int modules = 0;
  for (const char* name : {"tiny-w4g128-sym", "tiny-w4g32-sym", "tiny-w8g128-sym", "tiny-w3g32-sym",
                           "tiny-w2g32-sym", "tiny-w4-pc-sym", "tiny-w4g32-descact", "tiny-w4g32-dynamic",
                           "tiny-w4g32-asym-v2", "tiny-w4g32-asym-v1", "qwen2-w4g128-sym"}) {
    SCOPED_TRACE(name);
    const Checkpoint checkpoint = read_checkpoint(material / "peers" / "gptq" / name);
    const bool is_v1 = checkpoint.quantization->declared_version == "gptq";
    const GptqVersion own = is_v1 ? GptqVersion::kV1 : GptqVersion::kV2,
                      other = is_v1 ? GptqVersion::kV2 : GptqVersion::kV1;
    for (const auto& [weight_name, weight] : checkpoint.weights) {
      const auto* quantized = std::get_if<QuantizedTensor>(&weight);
      if (!quantized) continue;
      const std::string module = weight_name.substr(0, weight_name.size() - 7);
      for (const NamedTensor& named : gptq_tensors(module, *quantized, own)) {
        EXPECT_TRUE(equal_bytes(named.tensor, checkpoint.files.tensors.at(named.name))) << named.name;
      }
      const Tensor mine = gptq_tensors(module, *quantized, own)[1].tensor;
      const Tensor theirs = gptq_tensors(module, *quantized, other)[1].tensor;
      EXPECT_FALSE(equal_bytes(mine, theirs));
      ++modules;
    }
  }
  EXPECT_GT(modules, 11 * 13);
}

// research/gptq.md 1.9: the sums of tensor bytes for Qwen2-1.5B, whose geometry follows.
TEST(GptqWrite, Qwen2Of1500MillionParametersHasThePublishedSize) {
  struct Linear {
    int64_t out, in;
  };
  const Linear kLinears[] = {{1536, 1536}, {256, 1536},  {256, 1536}, {1536, 1536},
                             {8960, 1536}, {8960, 1536}, {1536, 8960}};
  const int64_t kLayers = 28, kHidden = 1536, kVocabulary = 151936;
  // Norms, q/k/v biases and the tied embedding, in 16 bits.
  const int64_t dense = 2 * (kVocabulary * kHidden + kHidden + kLayers * (2 * kHidden + kHidden + 256 + 256));
  const struct {
    int bits, group_size;
    int64_t bytes;
  } kExpected[] = {{2, 128, 819652608}, {3, 128, 984706560}, {4, 128, 1149760512}, {8, 128, 1809976320},
                   {2, 32, 888744960},  {3, 32, 1057637376}, {4, 32, 1226529792},  {8, 32, 1902099456},
                   {2, -1, 798073344},  {3, -1, 961928448},  {4, -1, 1125783552},  {8, -1, 1781203968}};
  const std::vector<char> nothing(64);
  for (const auto& expected : kExpected) {
    int64_t layer = 0;
    for (const Linear& linear : kLinears) {
      QuantizedTensor weight;
      weight.bits = expected.bits;
      weight.group_size = effective_group_size(linear.in, expected.group_size);
      weight.out_features = linear.out;
      weight.in_features = linear.in;
      // Only sizes are asked of these; no byte of them is touched.
      weight.codes = Tensor::borrow(nullptr, nothing.data(), DType::kI32,
                                    {packed_words(linear.in, expected.bits), linear.out});
      weight.scales = Tensor::borrow(nullptr, nothing.data(), DType::kF16, {weight.groups(), linear.out});
      for (const NamedTensor& named : gptq_tensors("m", weight, GptqVersion::kV1)) {
        layer += static_cast<int64_t>(named.tensor.byte_count());
      }
    }
    EXPECT_EQ(dense + kLayers * layer, expected.bytes)
        << expected.bits << " bits, group " << expected.group_size;
  }
}

TEST(GptqWrite, TheConfigHasEveryKeyThatReadersAskFor) {
  GptqConfig config;
  config.affine = {.bits = 4, .group_size = 128, .sym = true};
  config.damp_percent = 0.05f;
  config.meta = Json(Json::Object{{"static_groups", false}, {"quantizer", "someone"}});
  const Json json = gptq_config_json(config);
  for (const char* key : {"bits", "group_size", "damp_percent", "desc_act", "static_groups", "sym",
                          "true_sequential", "model_name_or_path", "model_file_base_name", "quant_method",
                          "method", "checkpoint_format", "format", "pack_dtype", "lm_head", "meta"}) {
    EXPECT_NE(json.find(key), nullptr) << key;
  }
  EXPECT_EQ(json.find("dynamic"), nullptr);
  EXPECT_EQ(json.get("damp_percent").dump(), "0.05");
  EXPECT_EQ(json.get("meta").get("quantizer").as_array()[0].as_string().substr(0, 7), "lowbit:");
  EXPECT_EQ(json.get("format").as_string(), "gptq");
  config.version = GptqVersion::kV2;
  config.dynamic = Json(Json::Object{{"-:.*v_proj", Json::object()}});
  EXPECT_EQ(gptq_config_json(config).get("checkpoint_format").as_string(), "gptq_v2");
  EXPECT_EQ(gptq_config_json(config).get("dynamic").size(), 1u);
}

}  // namespace
}  // namespace lowbit
