#include "checkpoint/gptq_fixture.h"
#include "lowbit/inspect.h"
#include "lowbit/memory.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::GptqFolder;

// Tensors for the counting, sizes in config.json for the rest; nothing asks whether they fit together.
struct SmallModel {
  testing::TemporaryFolder folder;

  SmallModel() {
    write_safetensors(folder.path() / "model.safetensors",
                      {{"model.embed_tokens.weight", Tensor::zeros(DType::kBF16, {10, 8})},
                       {"model.norm.weight", Tensor::zeros(DType::kF32, {8})},
                       {"model.layers.0.mlp.up_proj.weight", Tensor::zeros(DType::kBF16, {50, 100})}});
    write_file_atomically(
        folder.path() / "config.json",
        R"({"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true, "hidden_act": "silu"})");
  }
};

TEST(MemoryEstimate, TheFootprintIsKeptTensorsAndRotaryFrequencies) {
  const MemoryEstimate estimate = estimate_memory(SmallModel().folder.path());
  EXPECT_EQ(estimate.parameters, 80 + 8 + 5000);
  EXPECT_EQ(estimate.weight_bytes, 160u + 32 + 10000);
  EXPECT_EQ(estimate.buffer_bytes, 2u * 2 * 4);  // two copies of two frequencies, head_dim 4
  EXPECT_EQ(estimate.footprint_bytes, 10208u);
}

// get_memory_footprint() of transformers 5.24.0 (dtype "auto"), less the 2 bytes of Gemma's embed_scale.
TEST(MemoryEstimate, FootprintsAreThoseOfTransformers) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::pair<const char*, uint64_t> models[] = {
      {"bert", 558336}, {"bloom", 265984},    {"gemma3_text", 444610 - 2},
      {"gpt2", 670720}, {"gpt_neox", 298256}, {"mistral", 492576},
      {"opt", 314880},  {"phi3", 492576},     {"qwen2", 2626304},
      {"qwen3", 431424}};
  for (const auto& [folder, bytes] : models)
    EXPECT_EQ(estimate_memory(material / "peers" / "models" / folder).footprint_bytes, bytes) << folder;
}

TEST(MemoryEstimate, RunningTakesKeysValuesAndActivations) {
  const SmallModel model;
  MemoryEstimateOptions options{.context = 16, .batch_size = 3};
  const RunMemory run = estimate_memory(model.folder.path(), options).run;
  EXPECT_EQ(run.kv_cache_bytes_per_token,
            2u * 2 * 1 * 4 * 2);  // layers, keys and values, kv_heads, head_dim, bytes
  EXPECT_EQ(run.kv_cache_bytes, 32u * 16 * 3);
  // Per token: hidden and normed 2 x 8, carry 12, q, k and v 16; the tables 16 x 4; logits 3 x 10.
  EXPECT_EQ(run.activation_bytes, 4u * (48 * 44 + 64 + 30));
  EXPECT_EQ(run.total_bytes, 10192u + 1536 + 8824);
  options.kv_cache_dtype = "float32";
  EXPECT_EQ(estimate_memory(model.folder.path(), options).run.kv_cache_bytes, 2 * run.kv_cache_bytes);
}

TEST(MemoryEstimate, APromptIsReadInPieces) {
  const SmallModel model;
  const MemoryEstimate estimate = estimate_memory(model.folder.path(), {.context = 4096});
  EXPECT_EQ(estimate.run.activation_bytes, 4u * (2048 * 44 + 4096 * 4 + 10));
  EXPECT_CONTAINS(estimate.notes.at(0), "made for 32");
}

TEST(MemoryEstimate, WithoutAContextItIsTheModelsOwn) {
  const RunMemory run = estimate_memory(SmallModel().folder.path()).run;
  EXPECT_EQ(run.context, 32);
  EXPECT_EQ(run.batch_size, 1);
  EXPECT_EQ(run.kv_cache_bytes, 32u * 32);
}

TEST(MemoryEstimate, TrainingTakesWeightsGradientsAndAdamsMoments) {
  const std::vector<TrainMemory> train = estimate_memory(SmallModel().folder.path()).train;
  ASSERT_EQ(train.size(), 2u);
  EXPECT_EQ(train[0].dtype, "bfloat16");
  EXPECT_EQ(train[0].weight_bytes, 2u * 5088);
  EXPECT_EQ(train[0].gradient_bytes, 2u * 5088);
  EXPECT_EQ(train[0].adam_bytes, 8u * 5088);
  // 80 and 8 parameters stay in 32 bits; 5000 have two bytes each, and two F32 for each of 20 blocks.
  EXPECT_EQ(train[0].adam_8bit_bytes, 8u * 88 + 2 * 5000 + 2 * 4 * 20);
  EXPECT_EQ(train[0].total_bytes, 12u * 5088);
  EXPECT_EQ(train[0].total_8bit_bytes, 4u * 5088 + 10864);
  EXPECT_EQ(train[1].dtype, "float32");
  EXPECT_EQ(train[1].total_bytes, 16u * 5088);
}

TEST(MemoryEstimate, QuantizedWeightsTrainAsWhatTheyStandFor) {
  GptqFolder folder;  // 64 x 256 in 4 bits, and an embedding of 8 x 256
  folder.write();
  const MemoryEstimate estimate = estimate_memory(folder.folder.path());
  EXPECT_EQ(estimate.parameters, 64 * 256 + 8 * 256);
  EXPECT_EQ(estimate.train.at(0).weight_bytes, 2u * (64 * 256 + 8 * 256));
  EXPECT_LT(estimate.weight_bytes, estimate.train[0].weight_bytes);
  EXPECT_CONTAINS(estimate.run_unknown, "vocab_size");  // this config.json has no sizes
}

TEST(MemoryEstimate, WhatIsNotKnownIsSaid) {
  const SmallModel model;
  const MemoryEstimate file = estimate_memory(model.folder.path() / "model.safetensors");
  EXPECT_CONTAINS(file.run_unknown, "config.json");
  EXPECT_EQ(file.train.size(), 2u);
  const Json json = parse_json(to_json(file), "estimate");
  EXPECT_TRUE(json.get("run").is_null());
  EXPECT_CONTAINS(json.get("run_unknown").as_string(), "config.json");
}

TEST(MemoryEstimate, OfADialectThatLowbitDoesNotReadTheParametersAreUnknown) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const MemoryEstimate estimate = estimate_memory(material / "peers" / "gptq" / "tiny-w6g32-planar");
  EXPECT_TRUE(estimate.train.empty());
  EXPECT_CONTAINS(estimate.train_unknown, "packed");
  EXPECT_GT(estimate.run.kv_cache_bytes, 0u);
}

TEST(MemoryEstimate, OptionsHaveTheirRanges) {
  const SmallModel model;
  for (const MemoryEstimateOptions& bad : {MemoryEstimateOptions{.context = -1},
                                           {.context = int64_t{1} << 40},
                                           {.batch_size = 0},
                                           {.kv_cache_dtype = "int8"}}) {
    error_of(ErrorCode::kInvalidArgument, [&] { estimate_memory(model.folder.path(), bad); });
  }
}

TEST(MemoryEstimate, IsTheLastMemberOfAnInspection) {
  const SmallModel model;
  const Json json = parse_json(inspect_with_memory_json(model.folder.path(), {.context = 16}), "inspection");
  EXPECT_EQ(json.as_object().back().first, "memory");
  EXPECT_EQ(json.get("memory").get("run").get("context").as_integer(), 16);
  EXPECT_EQ(json.get("parameters"), json.get("memory").get("parameters"));
}

}  // namespace
}  // namespace lowbit
