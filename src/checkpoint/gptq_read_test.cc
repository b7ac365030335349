#include "base/sha256.h"
#include "checkpoint/gptq_fixture.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::equal_bytes;
using testing::GptqFolder;
using testing::has_note;

std::string hash_of(const Weight& weight) {
  const Tensor dense = std::holds_alternative<Tensor>(weight)
                           ? converted(std::get<Tensor>(weight), DType::kF32)
                           : dequantized(std::get<QuantizedTensor>(weight));
  Sha256 hash;
  hash.append(dense.bytes(), dense.byte_count());
  return hash.finish();
}

// The goldens were made by reading the files plainly in Python (material/peers/README.md).
TEST(GptqRead, EveryPeerFileDecodesToItsGolden) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int folders = 0, matrices = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(material / "peers" / "gptq")) {
    if (!entry.is_directory() || entry.path().filename() == "tiny-w6g32-planar") continue;
    SCOPED_TRACE(entry.path().filename().string());
    const Checkpoint checkpoint = read_checkpoint(entry.path());
    const Json golden =
        parse_json(read_file(entry.path() / "golden.json"), "golden.json", {.allow_nan = true});
    ASSERT_TRUE(checkpoint.quantization.has_value());
    for (const auto& [name, hash] : golden.get("dequant_weight_sha256_f32").as_object()) {
      const auto weight = checkpoint.weights.find(name);
      ASSERT_NE(weight, checkpoint.weights.end()) << name;
      EXPECT_EQ(hash_of(weight->second), hash.as_string()) << name;
      ++matrices;
    }
    const SafetensorsFile values = open_safetensors(entry.path() / "golden.safetensors");
    const std::string prefix = "dequant_weight.";
    for (const NamedTensor& named : values.tensors) {
      if (named.name.substr(0, prefix.size()) != prefix) continue;
      const auto weight = checkpoint.weights.find(named.name.substr(prefix.size()));
      ASSERT_NE(weight, checkpoint.weights.end()) << named.name;
      const Tensor dense = dequantized(std::get<QuantizedTensor>(weight->second));
      ASSERT_EQ(dense.shape(), named.tensor.shape());
      EXPECT_EQ(std::memcmp(dense.bytes(), named.tensor.bytes(), dense.byte_count()), 0) << named.name;
    }
    ++folders;
  }
  EXPECT_GE(folders, 18);
  EXPECT_GE(matrices, 18 * 13);
}

TEST(GptqRead, PlanarPackingIsRefusedByName) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string message = testing::error_of(
      ErrorCode::kUnsupported, [&] { read_checkpoint(material / "peers" / "gptq" / "tiny-w6g32-planar"); });
  EXPECT_NE(message.find("gptq_p"), std::string::npos) << message;
}

TEST(GptqRead, AConfigThatContradictsTheSizesIsRefused) {
  {
    GptqFolder folder;
    folder.quantization.set("bits", 3);
    const std::string message = folder.refusal(ErrorCode::kCorruptFile);
    EXPECT_CONTAINS(message, "says 3 bits");
    EXPECT_CONTAINS(message, "hold 4 bits for 256 inputs");
    EXPECT_CONTAINS(message, GptqFolder::kModule);
  }
  for (int group_size : {64, 256, -1, 1 << 30}) {
    GptqFolder folder;
    folder.quantization.set("group_size", group_size);
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kCorruptFile), "so scales must be");
  }
  {
    GptqFolder folder;  // a rule that says 8 bits of a module of 4
    folder.quantization.set("dynamic", Json(Json::Object{{"+:.*up_proj", Json::Object{{"bits", 8}}}}));
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kCorruptFile), "says 8 bits");
  }
  {
    GptqFolder folder;
    folder.quantization.set("dynamic", Json(Json::Object{{"-:.*up_proj", Json::object()}}));
    EXPECT_TRUE(has_note(folder.read(), "excludes it"));
  }
}

TEST(GptqRead, GroupSizesWithoutSenseAreRefused) {
  for (int group_size : {0, -2}) {
    GptqFolder folder;
    folder.quantization.set("group_size", group_size);
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kCorruptFile), "expected -1 or a positive number");
  }
  GptqFolder whole(
      {.bits = 4, .group_size = 4096});  // larger than the row: one group, as every loader has it
  const Checkpoint checkpoint = whole.read();
  EXPECT_EQ(whole.read_weight(checkpoint).group_size, 256);
}

TEST(GptqRead, GroupIndicesOutsideOfTheGroupsAreRefused) {
  for (int32_t bad : {2, -1, INT32_MAX, INT32_MIN}) {
    GptqFolder folder;
    folder.tensor(".g_idx").mutable_data<int32_t>()[77] = bad;
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kCorruptFile),
                    fmt::format("column 77 is of group {}, but there are 2", bad));
  }
}

TEST(GptqRead, ActOrderWithUnequalGroupsIsRefusedByName) {
  GptqFolder folder;
  folder.tensor(".g_idx").mutable_data<int32_t>()[0] = 1;
  EXPECT_CONTAINS(folder.refusal(ErrorCode::kUnsupported), "gives group 0 127 columns, expected 128");
}

TEST(GptqRead, MissingOrUnfilledGroupIndicesMeanSequential) {
  GptqFolder missing;
  missing.remove(".g_idx");
  const Checkpoint without = missing.read();
  EXPECT_TRUE(has_note(without, "no g_idx"));
  EXPECT_TRUE(equal_bytes(dequantized(missing.read_weight(without)), dequantized(missing.weight)));
  GptqFolder zeros;
  std::memset(zeros.tensor(".g_idx").mutable_bytes(), 0, 1024);
  const Checkpoint unfilled = zeros.read();
  EXPECT_TRUE(has_note(unfilled, "only zeros"));
  EXPECT_TRUE(equal_bytes(dequantized(zeros.read_weight(unfilled)), dequantized(zeros.weight)));
  EXPECT_EQ(unfilled.quantization->group_order, "sequential");
}

TEST(GptqRead, TensorsOfWrongTypeOrShapeAreRefused) {
  const struct {
    const char* suffix;
    DType dtype;
    Shape shape;
    const char* part;
  } kCases[] = {{".qweight", DType::kF32, {32, 64}, "is F32, expected I32"},
                {".qweight", DType::kI32, {2048}, "expected 2 dimensions"},
                {".qweight", DType::kI32, {31, 64}, "fit no number of bits"},
                {".qweight", DType::kI32, {0, 64}, "fit no number of bits"},
                {".qweight", DType::kI32, {32, 0}, "cannot be empty"},
                {".qzeros", DType::kI32, {2, 9}, "fit no number of bits"},
                {".qzeros", DType::kI32, {1, 8}, "so scales must be [2, 64] and qzeros [2, 8]"},
                {".qzeros", DType::kI64, {2, 8}, "is I64"},
                {".scales", DType::kF16, {2, 63}, "found [2, 63]"},
                {".scales", DType::kF16, {64, 2}, "found [64, 2]"},
                {".scales", DType::kI32, {2, 64}, "expected F16, BF16 or F32"},
                {".g_idx", DType::kI32, {200}, "for 200 inputs"},
                {".g_idx", DType::kI32, {0}, "cannot be empty"},
                {".g_idx", DType::kI64, {256}, "is I64"}};
  for (const auto& bad : kCases) {
    SCOPED_TRACE(fmt::format("{} {}", bad.suffix, shape_text(bad.shape)));
    GptqFolder folder;
    folder.tensor(bad.suffix) = Tensor::zeros(bad.dtype, bad.shape);
    const std::string message = folder.refusal(ErrorCode::kCorruptFile);
    EXPECT_CONTAINS(message, bad.part);
    EXPECT_CONTAINS(message, GptqFolder::kModule);
  }
  for (const char* suffix : {".qzeros", ".scales"}) {
    GptqFolder folder;
    folder.remove(suffix);
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kCorruptFile), std::string(suffix) + " is not");
  }
  GptqFolder both;
  both.tensor(".weight") = Tensor::zeros(DType::kF16, {64, 256});
  EXPECT_CONTAINS(both.refusal(ErrorCode::kCorruptFile), "both a .weight and a .qweight");
  GptqFolder none;
  for (const char* suffix : {".qweight", ".qzeros", ".scales", ".g_idx"}) none.remove(suffix);
  EXPECT_CONTAINS(none.refusal(ErrorCode::kCorruptFile), "no tensor ends in .qweight");
}

TEST(GptqRead, TheVersionOfASymmetricFileFollowsItsValues) {
  for (GptqVersion stored : {GptqVersion::kV1, GptqVersion::kV2}) {
    for (const char* label : {"gptq", "gptq_v2"}) {
      GptqFolder folder({}, stored);
      folder.quantization.set("format", label);
      folder.quantization.set("checkpoint_format", label);
      const Checkpoint checkpoint = folder.read();
      const char* truth = stored == GptqVersion::kV1 ? "gptq" : "gptq_v2";
      EXPECT_EQ(checkpoint.quantization->declared_version, label);
      EXPECT_EQ(checkpoint.quantization->found_version, truth);
      EXPECT_EQ(has_note(checkpoint, "read by their values"), std::string_view(label) != truth);
      EXPECT_TRUE(equal_bytes(dequantized(folder.read_weight(checkpoint)), dequantized(folder.weight)));
    }
  }
}

TEST(GptqRead, AFileThatIsOnlySaidToBeSymmetricIsReadAsItIs) {
  GptqFolder folder({.bits = 4, .group_size = 128, .sym = false});
  folder.quantization.set("sym", true);
  const Checkpoint checkpoint = folder.read();
  EXPECT_TRUE(has_note(checkpoint, "declared symmetric"));
  EXPECT_TRUE(equal_bytes(dequantized(folder.read_weight(checkpoint)), dequantized(folder.weight)));
}

// A word of 4-bit zero points 8 0 8 8 8 8 8 8: by field 7 15 7 7 ..., and 0x88888808 - 0x11111111 =
// 0x777776F7 by word.
TEST(GptqRead, ABorrowedZeroPointIsUndoneAsItWasMade) {
  for (bool by_word : {false, true}) {
    GptqFolder folder({.bits = 4, .group_size = 128, .sym = false});
    folder.tensor(".qzeros").mutable_data<uint32_t>()[0] = by_word ? 0x777776F7u : 0x777777F7u;
    if (by_word) folder.quantization.find("meta")->set("quantizer", Json(Json::Array{"gptqmodel:7.7.0"}));
    const Checkpoint checkpoint = folder.read();
    const uint8_t* zeros = folder.read_weight(checkpoint).zero_points.data<uint8_t>();
    EXPECT_EQ(zeros[0], 8);
    EXPECT_EQ(zeros[1], 0);
    for (int row = 2; row < 8; ++row) EXPECT_EQ(zeros[row], 8) << row;
    EXPECT_TRUE(has_note(checkpoint, by_word ? "borrowed" : "engines differ"));
  }
}

TEST(GptqRead, ScalesOfOtherFloatTypesBecomeHalves) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    GptqFolder folder;
    folder.tensor(".scales") = converted(folder.weight.scales, dtype);
    const Checkpoint checkpoint = folder.read();
    const Tensor expected = converted(converted(folder.weight.scales, dtype), DType::kF16);
    EXPECT_TRUE(equal_bytes(folder.read_weight(checkpoint).scales, expected));
    EXPECT_TRUE(checkpoint.notes.empty());  // both are exact in F16
    Tensor& scales = folder.tensor(".scales");
    if (dtype == DType::kF32) {
      scales.mutable_data<float>()[3] = 0.1f;
      EXPECT_TRUE(has_note(folder.read(), "scales rounded to F16"));
      scales.mutable_data<float>()[3] = 1e6f;
    } else {
      scales.mutable_data<uint16_t>()[3] = float_to_bf16(1e6f);
    }
    EXPECT_CONTAINS(folder.refusal(ErrorCode::kUnsupported), "at element 3");
  }
}

TEST(GptqRead, BiasesThatTheArchitectureDoesNotHave) {
  GptqFolder folder;
  folder.tensor(".bias") = Tensor::zeros(DType::kF16, {64});
  const Checkpoint zero = folder.read();
  EXPECT_EQ(zero.weights.count("model.layers.0.mlp.up_proj.bias"), 0u);
  EXPECT_TRUE(has_note(zero, "a bias of zeros"));
  folder.tensor(".bias").mutable_data<uint16_t>()[5] = 0x3c00;
  const Checkpoint nonzero = folder.read();
  EXPECT_EQ(nonzero.weights.count("model.layers.0.mlp.up_proj.bias"), 1u);
  EXPECT_TRUE(has_note(nonzero, "warning: 1 module"));
  folder.tensor(".bias") = Tensor::zeros(DType::kF16, {64});
  folder.config.set("mlp_bias", true);  // then it is one that the architecture has
  EXPECT_EQ(folder.read().weights.count("model.layers.0.mlp.up_proj.bias"), 1u);
}

}  // namespace
}  // namespace lowbit
