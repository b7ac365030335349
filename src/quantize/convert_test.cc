#include "lowbit/convert.h"

#include "base/files.h"
#include "checkpoint/checkpoint.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

bool same_values(const Weight& a, const Weight& b) {
  const Tensor x = std::holds_alternative<Tensor>(a) ? converted(std::get<Tensor>(a), DType::kF32)
                                                     : dequantized(std::get<QuantizedTensor>(a));
  const Tensor y = std::holds_alternative<Tensor>(b) ? converted(std::get<Tensor>(b), DType::kF32)
                                                     : dequantized(std::get<QuantizedTensor>(b));
  if (x.shape() != y.shape()) return false;
  return std::equal(x.data<float>(), x.data<float>() + x.element_count(), y.data<float>());
}

void expect_same_weights(const fs::path& a, const fs::path& b) {
  const Checkpoint first = read_checkpoint(a), second = read_checkpoint(b);
  ASSERT_EQ(first.weights.size(), second.weights.size());
  for (const auto& [name, weight] : first.weights) {
    EXPECT_TRUE(same_values(weight, second.weights.at(name))) << name;
  }
}

TEST(Convert, VersionsRoundTripAndFloat32IsExact) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const testing::TemporaryFolder folder;
  const fs::path source = material / "peers" / "gptq" / "qwen2-w4g128-sym";
  EXPECT_EQ(convert(source, folder.path() / "v2", {.to = "gptq_v2"}).largest_error, 0);
  EXPECT_EQ(convert(folder.path() / "v2", folder.path() / "v1", {.to = "gptq"}).from, "gptq_v2");
  EXPECT_EQ(
      convert(source, folder.path() / "dense", {.to = "float32", .max_shard_size = "300KB"}).largest_error,
      0);
  EXPECT_TRUE(fs::exists(folder.path() / "dense" / "model.safetensors.index.json"));
  EXPECT_FALSE(read_checkpoint(folder.path() / "dense").quantization);
  for (const char* name : {"v2", "v1", "dense"}) expect_same_weights(source, folder.path() / name);
  const ConvertResult half = convert(source, folder.path() / "half", {.to = "bfloat16"});
  EXPECT_GT(half.largest_error, 0);
  EXPECT_LT(half.largest_error, 0.01);
}

TEST(Convert, ActOrderBecomesSequentialAtAStatedError) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const testing::TemporaryFolder folder;
  const fs::path source = material / "peers" / "gptq" / "tiny-w4g32-descact";
  expect_same_weights(source, (convert(source, folder.path() / "same", {}), folder.path() / "same"));
  EXPECT_EQ(read_checkpoint(folder.path() / "same").quantization->group_order, "act-order");
  EXPECT_GT(convert(source, folder.path() / "sequential", {.sequential_groups = true}).largest_error, 0);
  const Checkpoint sequential = read_checkpoint(folder.path() / "sequential");
  EXPECT_EQ(sequential.quantization->group_order, "sequential");
  EXPECT_FALSE(sequential.quantization->desc_act);
}

TEST(Convert, RefusesWhatItCannotDo) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const testing::TemporaryFolder folder;
  const fs::path dense = material / "model-tinystories-656k-llama", out = folder.path() / "out";
  testing::error_of(ErrorCode::kInvalidArgument, [&] { convert(dense, out, {.to = "gptq"}); });
  testing::error_of(ErrorCode::kInvalidArgument, [&] { convert(dense, out, {.to = "int4"}); });
  testing::error_of(ErrorCode::kInvalidArgument, [&] { convert(dense, dense, {.to = "float16"}); });
  EXPECT_FALSE(fs::exists(out));
  fs::create_directory(out);
  testing::error_of(ErrorCode::kInvalidArgument, [&] { convert(dense, out, {.to = "float16"}); });
  EXPECT_TRUE(fs::is_empty(out));
}

}  // namespace
}  // namespace lowbit
