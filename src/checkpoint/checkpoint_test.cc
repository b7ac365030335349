#include "checkpoint/gptq_fixture.h"

#include <fstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::GptqFolder;
using testing::has_note;
using testing::TemporaryFolder;

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

// A plain model of two tensors.
struct PlainFolder {
  TemporaryFolder folder;
  std::string config =
      R"({"model_type": "llama", "zeta": 1, "torch_dtype": "float32", "alpha": {"b": 2, "a": 1}})";
  std::vector<NamedTensor> tensors = {{"model.embed_tokens.weight", Tensor::zeros(DType::kF32, {4, 8})},
                                      {"model.norm.weight", Tensor::zeros(DType::kF32, {8})}};
  Checkpoint read() {
    write();
    return read_checkpoint(folder.path());
  }
  void write() {
    write_safetensors(folder.path() / "model.safetensors", tensors);
    write_text(folder.path() / "config.json", config);
  }
  std::string refusal(ErrorCode code) {
    write();
    return error_of(code, [&] { read_checkpoint(folder.path()); });
  }
};

TEST(Checkpoint, APlainModelIsItsTensors) {
  PlainFolder model;
  const Checkpoint checkpoint = model.read();
  EXPECT_FALSE(checkpoint.quantization.has_value());
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  EXPECT_EQ(checkpoint.config.get("model_type").as_string(), "llama");
  EXPECT_FALSE(std::get<Tensor>(checkpoint.weights.at("model.norm.weight")).is_writable());
}

TEST(Checkpoint, EveryPeerModelIsRead) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int models = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(material / "peers" / "models")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    EXPECT_FALSE(read_checkpoint(entry.path()).weights.empty());
    ++models;
  }
  EXPECT_GT(models, 8);
}

TEST(Checkpoint, OtherDialectsOfThePeersAreRefusedByName) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string message = error_of(
      ErrorCode::kUnsupported, [&] { read_checkpoint(material / "peers" / "gptq" / "tiny-w6g32-planar"); });
  EXPECT_CONTAINS(message, "gptq_p");
}

TEST(Checkpoint, ABrokenConfigIsRefusedWithItsPath) {
  PlainFolder model;
  for (const char* config : {"", "[]", "{", "{\"a\":1,\"a\":2}", "{\"eps\": NaN}", "{} x"}) {
    model.config = config;
    EXPECT_CONTAINS(model.refusal(ErrorCode::kCorruptFile), "config.json");
  }
  fs::remove(model.folder.path() / "config.json");
  EXPECT_CONTAINS(error_of(ErrorCode::kNotFound, [&] { read_checkpoint(model.folder.path()); }),
                  "config.json");
  EXPECT_CONTAINS(error_of(ErrorCode::kNotFound, [] { read_checkpoint("Qwen/Qwen2-1.5B"); }),
                  "downloaded model folder");
}

TEST(Checkpoint, CompressedTensorsAreRefusedByName) {
  PlainFolder model;
  model.config = R"({"compression_config": {"config_groups": {}}})";
  EXPECT_CONTAINS(model.refusal(ErrorCode::kCorruptFile), "config_groups");
}

TEST(Checkpoint, IntegersInAPlainModelAreRefusedButOldBuffersAreIgnored) {
  PlainFolder model;
  model.tensors.push_back({"bert.embeddings.position_ids", Tensor::zeros(DType::kI64, {1, 8})});
  model.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", Tensor::zeros(DType::kF32, {4})});
  model.tensors.push_back({"h.0.attn.bias", Tensor::zeros(DType::kF32, {1, 1, 8, 8})});
  const Checkpoint checkpoint = model.read();
  EXPECT_EQ(checkpoint.weights.size(), 2u);
  EXPECT_TRUE(has_note(checkpoint, "3 derived buffers"));
  model.tensors.push_back({"model.layers.0.mlp.up_proj.weight", Tensor::zeros(DType::kI8, {4, 4})});
  EXPECT_CONTAINS(model.refusal(ErrorCode::kUnsupported), "model.layers.0.mlp.up_proj.weight is I8");
}

TEST(Checkpoint, ARepeatedHeadOfATiedModelIsDroppedAndADifferentOneReported) {
  PlainFolder model;
  model.config = R"({"tie_word_embeddings": true})";
  model.tensors.push_back({"lm_head.weight", Tensor::zeros(DType::kF32, {4, 8})});
  const Checkpoint same = model.read();
  EXPECT_EQ(same.weights.count("lm_head.weight"), 0u);
  EXPECT_TRUE(has_note(same, "repeats model.embed_tokens.weight (128 bytes)"));
  model.tensors.back().tensor.mutable_data<float>()[31] = 1;
  const Checkpoint other = model.read();
  EXPECT_EQ(other.weights.count("lm_head.weight"), 1u);
  EXPECT_TRUE(has_note(other, "another matrix"));
  model.config = R"({"tie_word_embeddings": false})";
  EXPECT_TRUE(model.read().notes.empty());
}

TEST(Checkpoint, TheModelsOwnFileNameIsFound) {
  for (const char* name : {"gptq_model-4bit-128g", "mine"}) {
    GptqFolder folder;
    folder.base_name = name;
    write_text(folder.folder.path() / "unrelated.safetensors", "");
    if (std::string_view(name) == "mine") folder.quantization.set("model_file_base_name", "mine");
    EXPECT_EQ(folder.read().weights.size(), 2u);
  }
  GptqFolder renamed;  // the name in the config is of before the file was renamed
  renamed.quantization.set("model_file_base_name", "gone");
  EXPECT_EQ(renamed.read().weights.size(), 2u);
  GptqFolder hostile;
  hostile.quantization.set("model_file_base_name", "../../etc/passwd");
  EXPECT_EQ(hostile.read().weights.size(), 2u);
}

TEST(Checkpoint, TheQuantizationConfigMayStandInAFileOfItsOwn) {
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    GptqFolder folder;
    write_text(folder.folder.path() / name, folder.quantization.dump());
    folder.quantization = {};
    EXPECT_EQ(folder.read().quantization->affine.group_size, 128);
  }
  PlainFolder plain;  // a stray file beside a model that is not quantized
  write_text(plain.folder.path() / "quantize_config.json", R"({"bits":4})");
  const Checkpoint checkpoint = plain.read();
  EXPECT_FALSE(checkpoint.quantization.has_value());
  EXPECT_TRUE(has_note(checkpoint, "ignored"));
  GptqFolder missing;
  missing.quantization = {};
  EXPECT_CONTAINS(missing.refusal(ErrorCode::kCorruptFile), "how they are quantized");
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, WritingCopiesTextFilesByteForByteAndKeepsTheConfigsOrder) {
  PlainFolder source;
  source.write();
  const std::string odd = "\xef\xbb\xbf{ \"x\" : 1 }\r\n";
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "generation_config.json", "LICENSE"}) {
    write_text(source.folder.path() / name, odd + name);
  }
  write_text(source.folder.path() / "README.md", "not copied");
  write_text(source.folder.path() / "pytorch_model.bin", "not copied");
  const Checkpoint checkpoint = read_checkpoint(source.folder.path());

  TemporaryFolder out;
  CheckpointFiles files;
  files.source = source.folder.path();
  files.tensors = {
      {"model.embed_tokens.weight",
       converted(std::get<Tensor>(checkpoint.weights.at("model.embed_tokens.weight")), DType::kBF16)}};
  files.config = output_config(checkpoint.config, files.tensors, Json(Json::Object{{"bits", 4}}));
  files.quantize_config = Json(Json::Object{{"bits", 4}});
  write_checkpoint(out.path(), files);
  EXPECT_EQ(names_in(out.path()),
            (std::vector<std::string>{"LICENSE", "added_tokens.json", "chat_template.jinja", "config.json",
                                      "generation_config.json", "merges.txt", "model.safetensors",
                                      "quantize_config.json", "special_tokens_map.json", "tokenizer.json",
                                      "tokenizer_config.json", "vocab.json"}));
  EXPECT_EQ(read_file(out.path() / "tokenizer.json"), odd + "tokenizer.json");
  EXPECT_EQ(
      parse_json(read_file(out.path() / "config.json"), "c").dump(),
      R"({"model_type": "llama", "zeta": 1, "torch_dtype": "bfloat16", "alpha": {"b": 2, "a": 1}, "quantization_config": {"bits": 4}})");
}

TEST(Checkpoint, TheDtypeKeyOfTransformersFiveIsKept) {
  const std::vector<NamedTensor> tensors = {{"a.scales", Tensor::zeros(DType::kF16, {100})},
                                            {"a.qweight", Tensor::zeros(DType::kI32, {100})},
                                            {"b.weight", Tensor::zeros(DType::kBF16, {10})}};
  const Json config(Json::Object{{"dtype", "float32"}, {"x", 1}, {"quantization_config", Json::object()}});
  EXPECT_EQ(output_config(config, tensors, Json()).dump(), R"({"dtype": "bfloat16", "x": 1})");
}

TEST(Checkpoint, NothingIsWrittenOverTheSourceOrAnotherModel) {
  PlainFolder source;
  source.write();
  const std::string before = read_file(source.folder.path() / "model.safetensors");
  CheckpointFiles files;
  files.source = source.folder.path();
  files.config = Json::object();
  EXPECT_CONTAINS(
      error_of(ErrorCode::kInvalidArgument, [&] { write_checkpoint(source.folder.path(), files); }),
      "over itself");
  TemporaryFolder other;
  write_text(other.path() / "old.safetensors", "x");
  EXPECT_CONTAINS(error_of(ErrorCode::kInvalidArgument, [&] { write_checkpoint(other.path(), files); }),
                  "old.safetensors");
  EXPECT_EQ(names_in(other.path()), std::vector<std::string>{"old.safetensors"});
  EXPECT_EQ(read_file(source.folder.path() / "model.safetensors"), before);
  EXPECT_EQ(names_in(source.folder.path()), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST(Checkpoint, ALinkOutOfTheSourceIsNotCopied) {
  PlainFolder source;
  source.write();
  TemporaryFolder secrets, out;
  write_text(secrets.path() / "key", "secret");
  fs::create_symlink(secrets.path() / "key", source.folder.path() / "LICENSE");
  CheckpointFiles files;
  files.source = source.folder.path();
  files.config = Json::object();
  EXPECT_CONTAINS(error_of(ErrorCode::kCorruptFile, [&] { write_checkpoint(out.path(), files); }),
                  "leads out of its folder");
  EXPECT_FALSE(fs::exists(out.path() / "config.json"));
}

}  // namespace
}  // namespace lowbit
