#include "lowbit/inspect.h"

#include "base/sha256.h"
#include "checkpoint/gptq_fixture.h"
#include "checkpoint/tensor_kinds.h"

#include <cmath>
#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::GptqFolder;

Json inspect(const fs::path& path) { return parse_json(inspect_json(path), "inspect"); }

uint64_t sum_of_components(const Json& json) {
  uint64_t sum = 0;
  for (const Json& component : json.get("components").as_array()) {
    const int64_t bytes = component.get("bytes").as_integer();
    sum += static_cast<uint64_t>(bytes);
    int64_t parts = 0;
    for (const auto& [key, value] : component.as_object()) {
      if (key.size() > 6 && key.substr(key.size() - 6) == "_bytes") parts += value.as_integer();
    }
    const bool has_parts = component.get("component").as_string() != "headers";
    EXPECT_EQ(has_parts ? parts : bytes, bytes);
  }
  return sum;
}

TEST(Inspect, EveryByteOfThePeersFilesIsAccountedFor) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  for (const char* kind : {"gptq", "models", "bnb"}) {
    for (const fs::directory_entry& entry : fs::directory_iterator(material / "peers" / kind)) {
      if (!fs::exists(entry.path() / "config.json")) continue;
      SCOPED_TRACE(entry.path().filename().string());
      const Json json = inspect(entry.path());
      uint64_t files = 0;
      for (const Json& file : json.get("files").as_array()) {
        files += fs::file_size(entry.path() / file.get("name").as_string());
      }
      EXPECT_GT(files, 0u);
      EXPECT_EQ(static_cast<uint64_t>(json.get("bytes").as_integer()), files);
      EXPECT_EQ(sum_of_components(json), files);
    }
  }
}

const Json& number_format(const Json& json, std::string_view dtype) {
  for (const Json& format : json.get("number_formats").as_array()) {
    if (format.get("dtype").as_string() == dtype) return format;
  }
  static const Json kNone;
  ADD_FAILURE() << "no " << dtype;
  return kNone;
}

TEST(Inspect, AQuantizedModelOfThePeers) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const Json json = inspect(material / "peers" / "gptq" / "tiny-w4g32-sym");
  EXPECT_EQ(json.get("architecture").as_string(), "LlamaForCausalLM");
  EXPECT_EQ(json.get("dialect").as_string(), "gptq");
  EXPECT_EQ(json.get("format").as_string(), "affine, 4 bits, group_size 32, symmetric");
  EXPECT_EQ(json.get("found_version").as_string(), "gptq");
  EXPECT_EQ(json.get("group_order").as_string(), "sequential");
  // Embedding, 5 norms, and per layer q, o: 128 x 128, k, v: 64 x 128, three of 384 x 128.
  EXPECT_EQ(json.get("parameters").as_integer(),
            2048 * 128 + 5 * 128 + 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 384 * 128));
  EXPECT_EQ(json.get("waste_bytes").as_integer(), 4 * 2 * (6 * 128 + 384));  // g_idx
  EXPECT_EQ(json.get("engines").size(), 5u);
  const Json act_order = inspect(material / "peers" / "gptq" / "tiny-w4g32-descact");
  EXPECT_EQ(act_order.get("group_order").as_string(), "act-order");
  EXPECT_EQ(act_order.get("waste_bytes").as_integer(), 0);
  const Json nf4 = inspect(material / "peers" / "bnb" / "tiny-nf4-dq");
  EXPECT_EQ(nf4.get("format").as_string(), "nf4, 4 bits, group_size 64");
  EXPECT_EQ(nf4.get("parameters").as_integer(), json.get("parameters").as_integer());
  EXPECT_EQ(nf4.get("waste_bytes").as_integer(), 0);
  EXPECT_EQ(nf4.get("engines").size(), 0u);
  const Json int8 = inspect(material / "peers" / "bnb" / "tiny-int8");
  EXPECT_EQ(int8.get("dialect").as_string(), "bitsandbytes");
  EXPECT_EQ(int8.get("format").as_string(), "int8, 8 bits, group_size -1, activations int8-dynamic");
  EXPECT_EQ(int8.get("parameters").as_integer(), json.get("parameters").as_integer());
  EXPECT_EQ(int8.get("waste_bytes").as_integer(), 0);
  EXPECT_EQ(number_format(int8, "int8 codes").get("lowest").as_number(), -127);
  const Json foreign = inspect(material / "peers" / "gptq" / "tiny-w6g32-planar");
  EXPECT_EQ(foreign.get("dialect").as_string(), "gptq");
  EXPECT_CONTAINS(foreign.get("warnings").dump(), "gptq_p");
}

TEST(Inspect, BitsPerWeightFollowFromTheSizes) {
  GptqFolder folder;  // 64 x 256 in 4 bits, groups of 128
  folder.write();
  const Json json = inspect(folder.folder.path());
  const double payload = 64 * 256 / 2 + 2 * (64 / 2) + 2 * 64 * 2 + 256 * 4;
  EXPECT_DOUBLE_EQ(json.get("bits_per_quantized_weight").as_number(), 8 * payload / (64 * 256));
  EXPECT_DOUBLE_EQ(json.get("bits_per_weight").as_number(),
                   8 * (payload + 8 * 256 * 2) / (64 * 256 + 8 * 256));
}

TEST(Inspect, WasteIsNamedAndCounted) {
  GptqFolder folder;
  folder.tensor(".bias") = Tensor::zeros(DType::kF16, {64});
  folder.tensors.push_back({"lm_head.weight", Tensor::zeros(DType::kBF16, {8, 256})});
  folder.write();
  const Json json = inspect(folder.folder.path());
  EXPECT_EQ(json.get("waste_bytes").as_integer(), 128 + 8 * 256 * 2 + 256 * 4);
  EXPECT_EQ(json.get("waste").size(), 3u);
  EXPECT_EQ(json.get("bytes_without_waste").as_integer(),
            json.get("bytes").as_integer() - json.get("waste_bytes").as_integer());
  EXPECT_TRUE(json.get("ties").get("head_repeats_embedding").as_bool());
  EXPECT_EQ(json.get("parameters").as_integer(), 64 * 256 + 8 * 256);
}

TEST(Inspect, EachNumberFormatHasItsParametersBytesAndRange) {
  GptqFolder folder;  // 64 x 256 in 4 bits, groups of 128; an embedding of 8 x 256 in BF16
  folder.write();
  const Json json = inspect(folder.folder.path());
  const Json& codes = number_format(json, "4-bit codes");
  EXPECT_EQ(codes.get("parameters").as_integer(), 64 * 256);  // not the 64 * 32 words
  EXPECT_EQ(codes.get("bytes").as_integer(), 64 * 256 / 2);
  EXPECT_EQ(codes.get("largest").as_number(), 15);
  const Json& dense = number_format(json, "BF16");
  EXPECT_EQ(dense.get("parameters").as_integer(), 8 * 256);
  EXPECT_EQ(dense.get("bytes").as_integer(), 2 * 8 * 256);
  EXPECT_EQ(dense.get("largest").as_number(), 0x1.FEp127);
  EXPECT_EQ(dense.get("step_at_one").as_number(), 0x1p-7);
  EXPECT_EQ(number_format(json, "F16").get("parameters").as_integer(), 0);                // scales
  EXPECT_EQ(number_format(json, "I32").get("bytes").as_integer(), 2 * 64 / 2 + 256 * 4);  // zeros and g_idx
  int64_t parameters = 0, bytes = 0;
  for (const Json& format : json.get("number_formats").as_array()) {
    parameters += format.get("parameters").as_integer();
    bytes += format.get("bytes").as_integer();
  }
  EXPECT_EQ(parameters, json.get("parameters").as_integer());
  EXPECT_EQ(bytes, json.get("bytes").as_integer() -
                       json.get("components").as_array().back().get("bytes").as_integer());
}

TEST(Inspect, ATiedHeadIsCountedOnceAndThatIsSaid) {
  GptqFolder folder;
  folder.write();
  Json json = inspect(folder.folder.path());
  EXPECT_EQ(json.get("ties").get("parameters_counted_once").as_integer(), 8 * 256);
  EXPECT_CONTAINS(json.get("notes").dump(), "2048 parameters are counted once");
  folder.tensors.push_back({"lm_head.weight", Tensor::zeros(DType::kBF16, {8, 256})});  // repeats it
  folder.write();
  json = inspect(folder.folder.path());
  EXPECT_EQ(json.get("ties").get("parameters_counted_once").as_integer(), 8 * 256);
  EXPECT_EQ(json.get("parameters").as_integer(), 64 * 256 + 8 * 256);
  folder.config.set("tie_word_embeddings", false);
  folder.write();
  json = inspect(folder.folder.path());
  EXPECT_EQ(json.get("ties").get("parameters_counted_once").as_integer(), 0);
  EXPECT_EQ(json.get("parameters").as_integer(), 64 * 256 + 2 * 8 * 256);
}

TEST(Inspect, RemoteCodeStrayFilesAndTemplatesAreReported) {
  GptqFolder folder;
  folder.config.set("auto_map", Json(Json::Object{{"AutoModel", "evil.Model"}}));
  folder.write();
  std::ofstream(folder.folder.path() / "stale.safetensors") << "x";
  std::ofstream(folder.folder.path() / "pytorch_model.bin") << "x";
  std::ofstream(folder.folder.path() / "tokenizer_config.json")
      << R"({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ x }}"}]})";
  Json json = inspect(folder.folder.path());
  const std::string warnings = json.get("warnings").dump();
  EXPECT_CONTAINS(warnings, "auto_map");
  EXPECT_CONTAINS(warnings, "stale.safetensors");
  EXPECT_CONTAINS(warnings, "pytorch_model.bin");
  EXPECT_EQ(json.get("chat_template_sha256").as_string(), sha256_hex("{{ x }}"));
  std::ofstream(folder.folder.path() / "chat_template.jinja") << "other";
  EXPECT_EQ(inspect(folder.folder.path()).get("chat_template_sha256").as_string(), sha256_hex("other"));
}

TEST(Inspect, ASingleFileIsItsTensors) {
  GptqFolder folder;
  folder.write();
  const Json json = inspect(folder.folder.path() / "model.safetensors");
  EXPECT_EQ(json.get("dialect").as_string(), "safetensors");
  EXPECT_EQ(sum_of_components(json), fs::file_size(folder.folder.path() / "model.safetensors"));
  EXPECT_TRUE(json.get("chat_template_sha256").is_null());
}

TEST(Inspect, StatisticsOfATensorCountWhatIsNotFinite) {
  testing::TemporaryFolder folder;
  Tensor tensor = Tensor::zeros(DType::kF32, {2, 4});
  const float values[] = {1, 2, 3, NAN, INFINITY, -INFINITY, 0, -6};
  std::memcpy(tensor.mutable_bytes(), values, sizeof values);
  const fs::path path = folder.path() / "x.safetensors";
  write_safetensors(path, {{"some.weight", tensor}});
  const Json json = parse_json(inspect_tensor_json(path, "some.weight"), "t");
  EXPECT_EQ(json.get("min").as_number(), -6);
  EXPECT_EQ(json.get("max").as_number(), 3);
  EXPECT_EQ(json.get("mean").as_number(), 0);
  EXPECT_NEAR(json.get("standard_deviation").as_number(), std::sqrt(50.0 / 5), 1e-12);
  EXPECT_EQ(json.get("zeros").as_integer(), 1);
  EXPECT_EQ(json.get("non_finite").as_integer(), 3);
  EXPECT_EQ(json.get("nan").as_integer(), 1);
  EXPECT_EQ(json.get("first_values").size(), 8u);
  EXPECT_CONTAINS(error_of(ErrorCode::kNotFound, [&] { inspect_tensor_json(path, "weight"); }),
                  "similar: some.weight");
}

TEST(Inspect, StatisticsOfAQuantizedWeightAreThoseOfItsValues) {
  GptqFolder folder;
  folder.write();
  const std::string name = std::string(GptqFolder::kModule) + ".weight";
  const Json json = parse_json(inspect_tensor_json(folder.folder.path(), name), "t");
  EXPECT_CONTAINS(json.get("dtype").as_string(), "4-bit codes, group_size 128, symmetric");
  EXPECT_EQ(json.get("first_values").as_array()[1].as_number(), dequantized(folder.weight).data<float>()[1]);
  EXPECT_EQ(json.get("elements").as_integer(), 64 * 256);
}

TEST(Inspect, ComponentsFollowFromNames) {
  const std::pair<const char*, const char*> cases[] = {
      {"model.embed_tokens.weight", "embedding"},
      {"lm_head.qweight", "head"},
      {"model.layers.0.self_attn.q_norm.weight", "norms"},
      {"model.layers.0.post_attention_layernorm.weight", "norms"},
      {"model.layers.0.self_attn.q_proj.qweight", "attention"},
      {"model.layers.0.mlp.up_proj.weight", "mlp"},
      {"something", "other"}};
  for (const auto& [name, component] : cases) EXPECT_EQ(component_of(name), component) << name;
}

}  // namespace
}  // namespace lowbit
