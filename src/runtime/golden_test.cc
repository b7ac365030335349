// Every architecture and every GPTQ checkpoint against numbers that transformers computed in float32:
// embedding, each layer's output, the head's input, logits, per-token losses, ragged batches, and greedy
// tokens.
#include "format/int8.h"
#include "ops/matmul.h"
#include "ops/softmax.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <map>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

struct Golden {
  Json json;
  std::map<std::string, Tensor> tensors;
};

Golden read_golden(const fs::path& folder, const std::string& prefix) {
  Golden golden;
  golden.json = parse_json(read_file(folder / "golden.json"), "golden.json", {.allow_nan = true});
  for (NamedTensor& named : open_safetensors(folder / "golden.safetensors").tensors) {
    if (named.name.starts_with(prefix)) golden.tensors[named.name.substr(prefix.size())] = named.tensor;
  }
  return golden;
}

std::vector<int32_t> ids_of(const Json& json) {
  std::vector<int32_t> ids;
  for (const Json& id : json.as_array()) ids.push_back(static_cast<int32_t>(id.as_integer()));
  return ids;
}

// max|a - b| / max|b|
double relative_difference(const float* a, const float* b, int64_t count) {
  double difference = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) {
    difference = std::max(difference, std::abs(double{a[i]} - b[i]));
    most = std::max(most, std::abs(double{b[i]}));
    if (std::isnan(a[i])) return INFINITY;
  }
  return difference / most;
}

// The whole comparison; `greedy` is where golden.json keeps the tokens.
void compare(const fs::path& model_folder, const Golden& golden, const Json& greedy, double bound,
             const std::string& kernel = "ref") {
  const LanguageModel loaded = LanguageModel::load(
      model_folder, {.device = "cpu", .threads = 2, .kernel = kernel, .kv_cache_dtype = "float32"});
  const LanguageModel::State& state = loaded.state();
  const Model& model = state.model;
  const OpContext ops = state.ops();
  const int64_t width = model.config().hidden_size, vocab = model.config().vocab_size;
  const Json& prompts = golden.json.get("prompts");
  double largest = 0;
  auto check = [&](const std::string& name, const float* values) {
    const auto found = golden.tensors.find(name);
    ASSERT_NE(found, golden.tensors.end()) << name;
    const double difference =
        relative_difference(values, found->second.data<float>(), found->second.element_count());
    EXPECT_LT(difference, bound) << name;
    largest = std::max(largest, difference);
  };

  // prompt0, layer by layer.
  const std::vector<int32_t> first = ids_of(prompts.get("prompt0"));
  const int64_t tokens = static_cast<int64_t>(first.size());
  const RopeTables rope = model.rope_tables(ops, 1024);
  KvCache cache(model.config(), 1, tokens, DType::kF32);
  std::vector<float> hidden(static_cast<size_t>(tokens * width));
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < tokens; ++i) positions.push_back(i);
  model.embed(ops, first, positions.data(), hidden.data());
  check("hidden.embed", hidden.data());
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    const AttentionSequence sequence{0, tokens, 0, tokens, cache.keys(0), cache.values(0)};
    const StepInput step{.ops = &ops,
                         .tokens = tokens,
                         .positions = positions.data(),
                         .rope = &rope,
                         .sequences = std::span(&sequence, 1),
                         .layer_offset = layer * cache.layer_bytes(),
                         .cache_dtype = DType::kF32,
                         .mode = MatmulMode::kPrefill};
    model.block(layer).run(step, hidden.data());
    check(fmt::format("hidden.layer{}", layer), hidden.data());
  }
  std::vector<float> head_input(static_cast<size_t>(tokens * model.head_width()));
  model.head_input(ops, hidden.data(), tokens, head_input.data());
  check("hidden.head_input", head_input.data());

  // Last logits of each prompt alone, and of the padded rows as a ragged batch.
  auto last_logits = [&](const std::vector<std::vector<int32_t>>& rows, MatmulMode mode) {
    int64_t longest = 0, total = 0;
    for (const auto& row : rows) {
      longest = std::max(longest, static_cast<int64_t>(row.size()));
      total += static_cast<int64_t>(row.size());
    }
    KvCache batch_cache(model.config(), static_cast<int64_t>(rows.size()), longest, DType::kF32);
    std::vector<SequenceTokens> batch;
    for (size_t i = 0; i < rows.size(); ++i) batch.push_back({static_cast<int64_t>(i), rows[i]});
    std::vector<float> out(static_cast<size_t>(total * width)),
        logits(rows.size() * static_cast<size_t>(vocab));
    forward(model, ops, rope, batch, mode, batch_cache, out.data());
    int64_t row = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      row += static_cast<int64_t>(rows[i].size());
      model.logits(ops, out.data() + (row - 1) * width, 1, mode,
                   logits.data() + i * static_cast<size_t>(vocab));
    }
    return logits;
  };
  std::vector<std::vector<int32_t>> rows;
  for (const Json& row : prompts.get("batch_rows").as_array()) rows.push_back(ids_of(row));
  for (MatmulMode mode : {MatmulMode::kPrefill, MatmulMode::kDecode}) {
    check("logits_last.prompt0", last_logits({first}, mode).data());
    check("logits_last.prompt1", last_logits({ids_of(prompts.get("prompt1"))}, mode).data());
    check("logits_last.batch", last_logits(rows, mode).data());
  }

  // Losses of a long sequence.
  if (const Json* sequence =
          prompts.find("nll_sequence") ? prompts.find("nll_sequence") : golden.json.find("nll_sequence")) {
    const std::vector<std::vector<int32_t>> windows = {ids_of(*sequence)};
    forward_windows(model, ops, windows, 1, DType::kF32, [&](size_t, const float* states) {
      const int64_t scored = static_cast<int64_t>(windows[0].size()) - 1;
      std::vector<float> logits(static_cast<size_t>(scored * vocab)), losses;
      std::vector<double> sums(static_cast<size_t>(scored));
      model.logits(ops, states, scored, MatmulMode::kPrefill, logits.data());
      log_sum_exp(ops, logits.data(), scored, vocab, sums.data());
      for (int64_t i = 0; i < scored; ++i) {
        const size_t target = static_cast<size_t>(i * vocab + windows[0][static_cast<size_t>(i) + 1]);
        losses.push_back(static_cast<float>(sums[static_cast<size_t>(i)] - logits[target]));
      }
      check("nll_per_token", losses.data());
    });
  }

  // Greedy tokens, one by one and as a batch.
  const GenerateOptions options{.max_new_tokens = 16, .ignore_eos = true};
  for (const char* name : {"prompt0", "prompt1"}) {
    const auto answer = loaded.generate({ids_of(prompts.get(name))}, options);
    EXPECT_EQ(answer[0].token_ids, ids_of(greedy.get(name).as_array()[0])) << name;
  }
  const auto answers = loaded.generate(rows, options);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(answers[i].token_ids, ids_of(greedy.get("batch").as_array()[i])) << "batch row " << i;
    EXPECT_EQ(loaded.generate({rows[i]}, options)[0].token_ids, answers[i].token_ids);
  }
  ::testing::Test::RecordProperty("largest_relative_difference_" + kernel, fmt::format("{:.2g}", largest));
}

class ArchitectureGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(ArchitectureGolden, EveryLayerAndTokenMatchesTransformers) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string name = GetParam();
  const fs::path models = material / "peers" / "models";
  const fs::path model =
      name == "tinystories-golden" ? material / "model-tinystories-656k-llama" : models / name;
  const Golden golden = read_golden(models / (name == "bloom-sharded" ? "bloom" : name), "");
  compare(model, golden, golden.json.get("greedy16"), 1e-4);
  if (isa_available(Isa::kAvx2)) compare(model, golden, golden.json.get("greedy16"), 1e-4, "avx2");
}

INSTANTIATE_TEST_SUITE_P(All, ArchitectureGolden,
                         ::testing::Values("qwen2", "qwen3", "mistral", "tinystories-golden", "phi3", "gpt2",
                                           "gpt_neox", "gpt_neox-sequential", "bloom", "bloom-sharded", "opt",
                                           "opt-postnorm-proj", "gemma3_text"));

TEST(GptqGolden, EveryPeerCheckpointGivesItsDequantizedLogits) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  int compared = 0;
  for (const auto& entry : fs::directory_iterator(material / "peers" / "gptq")) {
    if (!entry.is_directory() || entry.path().filename() == "tiny-w6g32-planar") continue;
    SCOPED_TRACE(entry.path().filename().string());
    const Golden golden = read_golden(entry.path(), "dequant.");
    compare(entry.path(), golden, golden.json.get("dequant").get("greedy16"), 1e-4);
    ++compared;
  }
  EXPECT_GE(compared, 18);
}

TEST(BnbGolden, EveryPeerCheckpointOfFourBitsGivesItsDequantizedLogits) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  for (const char* name : {"tiny-nf4", "tiny-nf4-dq", "tiny-fp4", "tiny-nf4-storage-bf16"}) {
    SCOPED_TRACE(name);
    const fs::path folder = material / "peers" / "bnb" / name;
    const Golden golden = read_golden(folder, "dequant.");
    compare(folder, golden, golden.json.get("dequant").get("greedy16"), 1e-4);
  }
}

// What bitsandbytes saved of a model is what loading it in 4 bits gives, to the bit.
TEST(BnbGolden, LoadingInFourBitsGivesTheWeightsOfBitsandbytes) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const fs::path source = material / "model-tinystories-656k-llama";
  for (const std::string type : {"nf4", "fp4"}) {
    SCOPED_TRACE(type);
    const LanguageModel ours = LanguageModel::load(
        source, {.device = "cpu", .threads = 2, .load_in_4bit = true, .bnb_4bit_quant_type = type});
    const LanguageModel theirs =
        LanguageModel::load(material / "peers" / "bnb" / ("tiny-" + type), {.device = "cpu"});
    for (int64_t layer = 0; layer < 2; ++layer) {
      const auto &a = ours.state().model.block(layer).linears(),
                 &b = theirs.state().model.block(layer).linears();
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) {
        const Tensor x = dequantized(std::get<QuantizedTensor>(a[i].weight)),
                     y = dequantized(std::get<QuantizedTensor>(b[i].weight));
        int64_t different = 0;
        // They had rounded the F32 source to 16 bits first.
        for (int64_t k = 0; k < x.element_count(); ++k)
          different +=
              std::abs(x.data<float>()[k] - y.data<float>()[k]) > 1e-2f * std::abs(y.data<float>()[k]);
        EXPECT_LE(different, x.element_count() / 100) << a[i].module;
      }
    }
  }
}

std::vector<float> last_logits(const LanguageModel& loaded, const std::vector<int32_t>& ids) {
  const Model& model = loaded.state().model;
  const OpContext ops = loaded.state().ops();
  const auto tokens = static_cast<int64_t>(ids.size());
  const RopeTables rope = model.rope_tables(ops, 1024);
  KvCache cache(model.config(), 1, tokens, DType::kF32);
  std::vector<float> hidden(static_cast<size_t>(tokens * model.config().hidden_size)),
      logits(static_cast<size_t>(model.config().vocab_size));
  const std::vector<SequenceTokens> batch = {{0, ids}};
  forward(model, ops, rope, batch, MatmulMode::kPrefill, cache, hidden.data());
  model.logits(ops, hidden.data() + (tokens - 1) * model.config().hidden_size, 1, MatmulMode::kPrefill,
               logits.data());
  return logits;
}

// There the columns of outliers are those of the whole prompt, here of each token, so that the roundings
// differ: what counts is how far both are from inputs in float.
TEST(BnbGolden, EightBitsAreAsNearToFloatsAsThoseOfBitsandbytes) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const fs::path folder = material / "peers" / "bnb" / "tiny-int8";
  const Golden peer = read_golden(folder, "peer_compute_float16."), plain = read_golden(folder, "dequant.");
  const LanguageModel model =
      LanguageModel::load(folder, {.device = "cpu", .threads = 2, .kv_cache_dtype = "float32"});
  for (const char* prompt : {"prompt0", "prompt1"}) {
    const std::string name = fmt::format("logits_last.{}", prompt);
    const std::vector<float> logits = last_logits(model, ids_of(peer.json.get("prompts").get(prompt)));
    const auto count = static_cast<int64_t>(logits.size());
    const Tensor theirs = converted(peer.tensors.at(name), DType::kF32);
    const float* exact = plain.tensors.at(name).data<float>();
    const double distance = relative_difference(logits.data(), exact, count);
    EXPECT_LT(distance, 1.5 * relative_difference(theirs.data<float>(), exact, count)) << name;
    EXPECT_GT(distance, 1e-3) << name;
    EXPECT_LT(relative_difference(logits.data(), theirs.data<float>(), count), 4e-2) << name;
  }
}

// The products of bitsandbytes 0.50.2 on the CPU: of int8 with int8, and of its Linear8bitLt, which there
// multiplies floats with decoded weights.
TEST(BnbGolden, EightBitProductsAreThoseOfBitsandbytes) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  std::map<std::string, Tensor> tensors;
  for (const NamedTensor& named :
       open_safetensors(material / "peers" / "bnb" / "raw" / "int8.safetensors").tensors)
    tensors.emplace(named.name, named.tensor);
  const auto weight_of = [&](const std::string& codes, const std::string& sizes) {
    std::vector<float> scales;
    for (int64_t row = 0; row < 64; ++row) scales.push_back(int8_scale(tensors.at(sizes).data<float>()[row]));
    return from_int8_rows(tensors.at(codes).data<int8_t>(), scales, 96);
  };
  const Tensor x = converted(tensors.at("act.fp16.input"), DType::kF32);
  std::vector<float> y(12 * 64);
  const auto difference = [&](const QuantizedTensor& weight, const Tensor* bias, const std::string& output) {
    matmul({}, x.data<float>(), 12, Weight(weight), bias, y.data(), MatmulMode::kDecode);
    const Tensor expected = converted(tensors.at(output), DType::kF32);
    return relative_difference(y.data(), expected.data<float>(), 12 * 64);
  };
  QuantizedTensor weight = weight_of("mm.qw", "mm.sw");
  weight.activations = ActivationFormat::kInt8Dynamic;
  EXPECT_LT(difference(weight, nullptr, "mm.dequant_fp16"), 5e-4);  // rounded to F16 there
  const Tensor bias = converted(converted(tensors.at("linear.bias"), DType::kF16), DType::kF32);
  weight = weight_of("linear.fp16.thr6.weight_int8", "linear.fp16.thr6.SCB");
  EXPECT_LT(difference(weight, &bias, "linear.fp16.thr6.output"), 5e-4);
  weight.activations = ActivationFormat::kInt8Dynamic;
  const double without = difference(weight, &bias, "linear.fp16.thr6.output");
  weight.outlier_threshold = 6;
  const double with = difference(weight, &bias, "linear.fp16.thr6.output");
  EXPECT_LT(with, 5e-3);
  EXPECT_GT(without, 4 * with);  // a single input of 30 among some of 1.5
}

TEST(GptqGolden, PlanarFilesAreRefusedByName) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string message = testing::error_of(ErrorCode::kUnsupported, [&] {
    LanguageModel::load(material / "peers" / "gptq" / "tiny-w6g32-planar");
  });
  EXPECT_NE(message.find("gptq_p"), std::string::npos) << message;
}

}  // namespace
}  // namespace lowbit
