#include "base/sha256.h"
#include "checkpoint/checkpoint.h"
#include "support.h"

#include <cstring>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

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

}  // namespace
}  // namespace lowbit
