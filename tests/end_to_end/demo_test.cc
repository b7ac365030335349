// The demo's own model and data, from this source tree: what transformers computed with it, and that every
// figure is computed from the files that are given, not known beforehand.
#include "base/files.h"
#include "base/json.h"
#include "program.h"
#include "runtime/forward.h"
#include "runtime/language_model.h"

#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <span>

namespace lowbit {
namespace {

using namespace testing;
namespace fs = std::filesystem;

fs::path demo() { return fs::path(LOWBIT_SOURCE_DIR) / "demo"; }

std::vector<int32_t> ids_of(const Json& json) {
  std::vector<int32_t> ids;
  for (const Json& id : json.as_array()) ids.push_back(static_cast<int32_t>(id.as_integer()));
  return ids;
}

// The first `count` examples of the test file, their labels turned round when asked.
void write_examples(const fs::path& path, int count, bool swaps_labels) {
  std::ifstream from(demo() / "data" / "test.jsonl");
  std::ofstream to(path);
  std::string line;
  for (int i = 0; i < count && std::getline(from, line); ++i) {
    Json example = parse_json(line, "test.jsonl");
    if (swaps_labels) example.set("is_fraud", !example.get("is_fraud").as_bool());
    to << example.dump() << "\n";
  }
}

TEST(Demo, LogitsAndGreedyTokensAreThoseOfTransformers) {
  const Json golden = parse_json(
      read_file(fs::path(LOWBIT_SOURCE_DIR) / "tests" / "golden" / "demo_golden.json"), "demo_golden.json");
  const LanguageModel loaded = LanguageModel::load(
      demo() / "model", {.device = "cpu", .threads = 2, .kernel = "ref", .kv_cache_dtype = "float32"});
  const LanguageModel::State& state = loaded.state();
  const OpContext ops = state.ops();
  const int64_t width = state.model.config().hidden_size;
  ASSERT_EQ(golden.get("prompts").size(), 4u);
  for (const Json& prompt : golden.get("prompts").as_array()) {
    SCOPED_TRACE(prompt.get("id").as_string());
    const std::vector<int32_t> ids = ids_of(prompt.get("prompt_ids"));
    std::vector<Message> messages;
    for (const Json& message : prompt.get("messages").as_array())
      messages.push_back({message.get("role").as_string(), message.get("content").as_string()});
    EXPECT_EQ(encode_chat(loaded.tokenizer(), loaded.chat_template(), messages), ids);

    std::vector<float> logits(static_cast<size_t>(loaded.vocab_size()));
    const std::vector<std::vector<int32_t>> windows = {ids};
    forward_windows(state.model, ops, windows, 1, DType::kF32, [&](size_t, const float* hidden) {
      state.model.logits(ops, hidden + (static_cast<int64_t>(ids.size()) - 1) * width, 1,
                         MatmulMode::kPrefill, logits.data());
    });
    const Json& top = prompt.get("top_logits");
    ASSERT_EQ(top.size(), 20u);
    const double largest = std::fabs(top.as_array()[0].as_array()[1].as_number());
    for (const Json& pair : top.as_array()) {
      const size_t id = static_cast<size_t>(pair.as_array()[0].as_integer());
      EXPECT_NEAR(logits[id], pair.as_array()[1].as_number(), 1e-3 * largest) << "token " << id;
    }
    // And no other token comes before the last of the twenty.
    const double last = top.as_array()[19].as_array()[1].as_number() + 1e-3 * largest;
    EXPECT_LE(std::count_if(logits.begin(), logits.end(), [&](float logit) { return logit > last; }), 20);

    const std::vector<int32_t> greedy = ids_of(prompt.get("greedy_ids"));
    ASSERT_EQ(greedy.size(), 24u);
    const auto answers = loaded.generate({ids}, {.max_new_tokens = 24, .ignore_eos = true});
    EXPECT_EQ(answers[0].token_ids, greedy);
  }
}

TEST(Demo, SwappedLabelsSwapTheCounts) {
  const TemporaryFolder folder;
  write_examples(folder.path() / "given.jsonl", 16, false);
  write_examples(folder.path() / "swapped.jsonl", 16, true);
  std::map<std::string, Json> counts;
  for (const char* name : {"given", "swapped"}) {
    counts[name] = run_json({"eval", "classify", demo() / "model", "--data",
                             folder.path() / (std::string(name) + ".jsonl"), "--max-new-tokens", "24"});
  }
  auto count = [&](const char* name, const char* key) { return counts[name].get(key).as_integer(); };
  EXPECT_EQ(count("given", "samples"), 16);
  EXPECT_EQ(count("given", "unparsable"), 0);
  EXPECT_GT(count("given", "true_positive"), 0);
  EXPECT_GT(count("given", "true_negative"), 0);
  // The answers stay, the truth turns: a positive answer that was right is wrong now.
  EXPECT_EQ(count("swapped", "false_positive"), count("given", "true_positive"));
  EXPECT_EQ(count("swapped", "true_positive"), count("given", "false_positive"));
  EXPECT_EQ(count("swapped", "false_negative"), count("given", "true_negative"));
  EXPECT_EQ(count("swapped", "true_negative"), count("given", "false_negative"));

  const Json table = run_json({"compare", demo() / "model", "--data", folder.path() / "swapped.jsonl"});
  const Json& compared = table.get("models").as_array().at(0).get("classification");
  for (const char* key : {"true_positive", "false_positive", "true_negative", "false_negative"})
    EXPECT_EQ(compared.get(key).as_integer(), count("swapped", key)) << key;
}

// Changes the bytes of a tensor of a safetensors file in place.
void change_tensor(const fs::path& path, const std::string& name, const std::string& dtype,
                   const std::function<void(std::span<char>)>& change) {
  std::string bytes = read_file(path);
  uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | static_cast<uint8_t>(bytes[static_cast<size_t>(i)]);
  const Json json = parse_json(bytes.substr(8, header), path.string());
  const Json& entry = json.get(name);
  ASSERT_EQ(entry.get("dtype").as_string(), dtype);
  const auto& offsets = entry.get("data_offsets").as_array();
  const size_t begin = 8 + header + static_cast<size_t>(offsets[0].as_integer());
  const size_t end = 8 + header + static_cast<size_t>(offsets[1].as_integer());
  ASSERT_LT(begin, end);
  change(std::span(bytes).subspan(begin, end - begin));
  write_file_atomically(path, bytes);
}

TEST(Demo, OneCorruptScaleTensorRaisesTheDivergence) {
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "int8", text = folder.path() / "text.txt";
  ASSERT_EQ(run({"quantize", demo() / "model", "-o", out, "--method", "rtn", "--bits", "8"}).code, 0);
  std::ofstream(text) << read_file(demo() / "data" / "test.jsonl").substr(0, 4000);
  const std::vector<std::string> words = {
      "eval", "divergence", out, "--reference", demo() / "model", "--text", text, "--context",
      "128",  "--limit",    "4"};
  const double before = run_json(words).get("mean_kl").as_number();
  // Twice the scales: the exponent of each F16 value is one more.
  change_tensor(out / "model.safetensors", "model.layers.2.mlp.up_proj.scales", "F16",
                [](std::span<char> bytes) {
                  for (size_t i = 1; i < bytes.size(); i += 2) bytes[i] = static_cast<char>(bytes[i] + 4);
                });
  const double after = run_json(words).get("mean_kl").as_number();
  EXPECT_GT(before, 0);
  EXPECT_LT(before, 0.02);
  EXPECT_GT(after, 10 * before);
}

TEST(Demo, AResultThatFailsItsCheckIsSavedAndExitsThree) {
  const TemporaryFolder folder;
  const fs::path model = folder.path() / "model", out = folder.path() / "int8";
  fs::copy(demo() / "model", model);
  // One infinite gain before the head: every logit is infinite or not a number, in the source and in the
  // result.
  change_tensor(model / "model.safetensors", "model.norm.weight", "BF16", [](std::span<char> bytes) {
    bytes[0] = '\x80';
    bytes[1] = '\x7f';
  });
  const Outcome outcome =
      run({"quantize", model, "-o", out, "--bits", "8", "--calibration",
           demo() / "data" / "calibration.jsonl", "--samples", "4", "--max-length", "64"});
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  EXPECT_TRUE(holds(outcome.out, "FAILED")) << outcome.out;
  EXPECT_TRUE(holds(outcome.err, "saved, but failed its check")) << outcome.err;
  EXPECT_TRUE(fs::exists(out / "model.safetensors"));
  const Json report = parse_json(read_file(out / "quantize_report.json"), "quantize_report.json");
  EXPECT_FALSE(report.get("check").get("passed").as_bool());
}

TEST(Demo, TestDialoguesThatCalibratedTheModelAreCounted) {
  const TemporaryFolder folder;
  const fs::path data = folder.path() / "data.jsonl", out = folder.path() / "int8";
  write_examples(data, 10, false);  // eight calibrate, two are held back
  ASSERT_EQ(run({"quantize", demo() / "model", "-o", out, "--bits", "8", "--calibration", data,
                 "--max-length", "128", "--no-check"})
                .code,
            0);
  const auto classify = [&](const fs::path& file) {
    return run({"eval", "classify", out, "--data", file, "--limit", "10", "--max-new-tokens", "1", "--json"});
  };
  const Outcome seen = classify(data), unseen = classify(demo() / "data" / "calibration.jsonl");
  EXPECT_EQ(seen.code, 0) << seen.err;
  EXPECT_TRUE(holds(seen.err, "warning: 8 of the 10 dialogues")) << seen.err;
  EXPECT_TRUE(holds(seen.out, "; 8 of the dialogues calibrated the model")) << seen.out;
  EXPECT_EQ(unseen.code, 0) << unseen.err;
  EXPECT_FALSE(holds(unseen.err, "calibrated")) << unseen.err;
}

std::vector<std::string> quantize_words(const fs::path& out) {
  return {"quantize",
          demo() / "model",
          "-o",
          out,
          "--bits",
          "4",
          "--calibration",
          demo() / "data" / "calibration.jsonl",
          "--samples",
          "8",
          "--max-length",
          "64",
          "--device",
          "cpu"};
}

// A limit on the size of files stands for a full disk: both make write() fail (and perhaps a GPU's driver).
// The layers of this model take about 0.4 MB each as 4 bits, the whole checkpoint 4 MB.
TEST(Demo, AFullDiskLeavesNoResultAndWhatIsDoneIsTakenUp) {
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "int4", partial = folder.path() / "int4.partial",
                 whole = folder.path() / "whole";
  const Outcome full = run(quantize_words(out), {.prefix = "ulimit -f 2048; "});
  EXPECT_EQ(full.code, 1) << full.err;
  EXPECT_EQ(full.out, "");
  const std::string last = full.err.substr(full.err.rfind("lowbit: error: ", std::string::npos));
  EXPECT_EQ(lines(last), 1) << full.err;
  EXPECT_TRUE(holds(last, "model.safetensors")) << last;
  EXPECT_TRUE(holds(last, "File too large")) << last;
  EXPECT_FALSE(fs::exists(out));
  EXPECT_TRUE(fs::exists(partial / "layer-00004.safetensors"));
  for (const auto& entry : fs::recursive_directory_iterator(partial))
    EXPECT_FALSE(holds(entry.path().filename().string(), ".tmp")) << entry.path();

  const Json resumed = run_json(quantize_words(out));
  EXPECT_TRUE(resumed.get("resumed").as_bool());
  EXPECT_FALSE(fs::exists(partial));
  EXPECT_FALSE(run_json(quantize_words(whole)).get("resumed").as_bool());
  EXPECT_EQ(read_file(out / "model.safetensors"), read_file(whole / "model.safetensors"));
}

}  // namespace
}  // namespace lowbit
