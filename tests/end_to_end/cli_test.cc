// The program itself, run as a user runs it: help, errors, exit codes, what goes to stdout and what to
// stderr, and the whole path on a small model.
#include "base/files.h"
#include "base/json.h"
#include "program.h"

#include <fstream>
#include <sstream>

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using testing::holds;
using testing::lines;
using testing::Outcome;
using testing::run_json;
using testing::TemporaryFolder;

Outcome run(const std::vector<std::string>& words, const std::string& input = "") {
  return testing::run(words, {.input = input});
}

// An error: its code, nothing on stdout, one line on stderr that holds `part`.
void expect_error(const std::vector<std::string>& words, int code, std::string_view part,
                  const std::string& input = "") {
  const Outcome outcome = run(words, input);
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(lines(outcome.err), 1) << outcome.err;
  EXPECT_TRUE(holds(outcome.err, "lowbit: error: ")) << outcome.err;
  EXPECT_TRUE(holds(outcome.err, part)) << "expected to find: " << part << "\nin: " << outcome.err;
}

const std::vector<std::vector<std::string>> kCommands = {{"quantize"},
                                                         {"eval"},
                                                         {"eval", "classify"},
                                                         {"eval", "perplexity"},
                                                         {"eval", "divergence"},
                                                         {"eval", "embeddings"},
                                                         {"compare"},
                                                         {"bench"},
                                                         {"generate"},
                                                         {"chat"},
                                                         {"inspect"},
                                                         {"explain"},
                                                         {"convert"},
                                                         {"tokenize"},
                                                         {"render"},
                                                         {"doctor"}};

TEST(Help, OfEveryCommandTeachesWithAnExample) {
  for (std::vector<std::string> words : kCommands) {
    words.push_back("--help");
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, 0) << words[0];
    EXPECT_TRUE(holds(outcome.out, "Example:\n  ")) << outcome.out;
    EXPECT_TRUE(holds(outcome.out, "Usage: lowbit " + words[0])) << outcome.out;
    std::istringstream text(outcome.out);
    for (std::string line; std::getline(text, line);)
      EXPECT_LE(line.size(), 80u) << "a usual terminal would break: " << line;
    EXPECT_EQ(outcome.err, "");
    if (words[0] == "eval" && words.size() == 2) continue;  // a group of commands
    for (const char* option : {"--threads", "--json", "--version"})
      EXPECT_TRUE(holds(outcome.out, option)) << outcome.out;
  }
}

TEST(Help, ListsCommandsAndExitCodes) {
  const Outcome outcome = run({"--help"});
  EXPECT_EQ(outcome.code, 0);
  for (const auto& words : kCommands) EXPECT_TRUE(holds(outcome.out, "\n  " + words[0])) << outcome.out;
  for (const char* code : {"Exit codes:", "0  ", "1  ", "2  ", "3  ", "4  ", "130  "})
    EXPECT_TRUE(holds(outcome.out, code));
}

TEST(Help, ShowsTheDefaultsOfTheOptionsStructs) {
  const Outcome outcome = run({"quantize", "--help"});
  for (const char* part :
       {"--bits N", "(default 4)", "--group-size N", "(default 128)", "--sym, --no-sym", "(default on)",
        "--damp-percent X", "--desc-act, --no-desc-act", "--max-length N", "-o, --output OUT"}) {
    EXPECT_TRUE(holds(outcome.out, part)) << part << "\n" << outcome.out;
  }
}

TEST(Version, IsPrintedEverywhere) {
  const Outcome top = run({"--version"}), command = run({"inspect", "--version"});
  EXPECT_EQ(top.code, 0);
  EXPECT_TRUE(holds(top.out, "lowbit ")) << top.out;
  EXPECT_EQ(top.out, command.out);
}

TEST(Usage, MistypedNamesAreSuggested) {
  expect_error({"quantize", "m", "-o", "o", "--bit", "4"}, 2, "did you mean --bits?");
  expect_error({"quantize", "m", "-o", "o", "--groupsize=64"}, 2, "did you mean --group-size?");
  expect_error({"quantise", "m"}, 2, "did you mean quantize?");
  expect_error({"eval", "perplexty", "m"}, 2, "did you mean perplexity?");
  expect_error({"eval", "classify", "m", "--data", "d", "--frobnicate"}, 2, "has no option --frobnicate");
}

TEST(Usage, WhatIsMissingOrWrongIsNamed) {
  expect_error({}, 2, "needs a command");
  expect_error({"eval"}, 2, "needs a command: classify, perplexity, divergence");
  expect_error({"quantize", "m"}, 2, "--output");
  expect_error({"quantize", "m", "-o", "o", "--bits", "four"}, 2, "four");
  expect_error({"doctor", "--threads", "-3"}, 2, "--threads");
  expect_error({"generate", "m", "--prompt", "x", "--seed", "-1"}, 2, "--seed");
  expect_error({"inspect", "a", "b"}, 2, "b");
  expect_error({"explain", "nf4"}, 2, "--values");
  expect_error({"explain", "nf4", "--values", "1 2", "--rows", "2"}, 2, "--tensor");
  expect_error({"inspect", "a", "--tensor", "b", "--context", "64"}, 2, "--context");
}

TEST(Errors, AMissingModelIsOneLineAndNothingOnStdout) {
  const std::vector<std::vector<std::string>> commands = {
      {"quantize", "/nowhere/m", "-o", "/tmp/o", "--method", "rtn"},
      {"eval", "classify", "/nowhere/m", "--data", "/dev/null"},
      {"eval", "perplexity", "/nowhere/m", "--text", "/dev/null"},
      {"eval", "divergence", "/nowhere/m", "--reference", "/nowhere/r", "--text", "/dev/null"},
      {"compare", "/nowhere/m", "--text", "/dev/null"},
      {"generate", "/nowhere/m", "--prompt", "x"},
      {"chat", "/nowhere/m"},
      {"inspect", "/nowhere/m"},
      {"convert", "/nowhere/m", "-o", "/tmp/o"},
      {"tokenize", "/nowhere/m"},
      {"render", "/nowhere/m", "--messages", "-"}};
  for (const auto& words : commands) expect_error(words, 1, "/nowhere/m", "[]");
}

TEST(Explain, ShowsCodesErrorsAndAPicture) {
  const Json json = run_json({"explain", "nf4", "--values", "1 -1, 0.08 0.5"});
  EXPECT_EQ(json.get("first").as_array()[1].get("code").as_integer(), 0);
  EXPECT_EQ(json.get("first").as_array()[2].get("code").as_integer(), 8);
  for (const std::string format : {"affine", "nf4", "fp4", "fp8", "fp8_e5m2", "log2"}) {
    const Outcome outcome = run({"explain", format, "--values", "0.1 -1.7 0.02 0.9"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_TRUE(holds(outcome.out, "relative error") && holds(outcome.out, "|") && holds(outcome.out, "-1.7"))
        << outcome.out;
  }
  expect_error({"explain", "nf4", "--values", "1 two"}, 2, "\"two\" is no number");
  expect_error({"explain", "nf4", "--values", " "}, 2, "no value");
  expect_error({"explain", "nf5", "--values", "1"}, 2, "fp8_e5m2");
  expect_error({"explain", "log2", "--bits", "9", "--values", "1"}, 2, "3 to 8");
  expect_error({"explain", "nf4", "--tensor", "/nowhere/m"}, 2, "FILE:NAME");
  expect_error({"explain", "nf4", "--tensor", "/nowhere/m:w"}, 1, "/nowhere/m");
}

TEST(Errors, AFolderThatIsNoModelIsNamed) {
  const TemporaryFolder folder;
  expect_error({"generate", folder.path(), "--prompt", "x"}, 1, "config.json");
  std::ofstream(folder.path() / "config.json") << "{\"model_type\": ";
  expect_error({"generate", folder.path(), "--prompt", "x"}, 1, "config.json");
}

// The rest needs a model: the demo's own, or one of the material.
fs::path stories() { return testing::material_folder() / "model-stories260k-llama2c" / "hf"; }
fs::path story_text() { return testing::material_folder() / "text" / "tinystories.txt"; }

TEST(Errors, OptionValuesThatCannotBeRightAreUsageErrors) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  expect_error({"quantize", stories(), "-o", folder.path() / "o", "--method", "rtn", "--bits", "5"}, 2,
               "bits is 5");
  EXPECT_FALSE(fs::exists(folder.path() / "o"));
  expect_error({"generate", stories(), "--prompt", "x", "--top-p", "1.5"}, 2, "top_p is 1.5");
  expect_error({"generate", stories(), "--prompt", "x", "--system", "y"}, 2, "--chat");
  expect_error({"eval", "perplexity", stories(), "--text", story_text(), "--protocol", "wiki"}, 2, "wiki");
  expect_error({"eval", "perplexity", stories(), "--text", folder.path() / "none"}, 1, "there is no file");
  expect_error({"eval", "classify", stories(), "--data", story_text(), "--predictions", "/nowhere/p.jsonl"},
               1, "/nowhere");
}

TEST(Errors, AGpuThatIsNotThereIsSaidBeforeTheDataIsRead) {
  const TemporaryFolder folder;
  const fs::path data = folder.path() / "broken.jsonl";
  std::ofstream(data) << "{\"messages\"";
  std::vector<std::string> command = {"quantize", LOWBIT_SOURCE_DIR "/demo/model", "-o",
                                      folder.path() / "out"};
  command.insert(command.end(), {"--device", "cuda:99", "--calibration", data});
  const Outcome outcome = run(command);
  EXPECT_NE(outcome.code, 0);
  EXPECT_TRUE(holds(outcome.err, "GPU")) << outcome.err;
  EXPECT_FALSE(holds(outcome.err, "broken.jsonl")) << outcome.err;

  command.push_back("--plan");  // which gives all reasons
  const Outcome plan = run(command);
  EXPECT_EQ(plan.code, 4) << plan.err;
  EXPECT_TRUE(holds(plan.out, "GPU") && holds(plan.out, "broken.jsonl")) << plan.out;
}

TEST(Tokenize, GoesThereAndBack) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::string text = "Once upon a time, there was a cat.\nÄ 猫 \"x\"";
  const Json json = run_json({"tokenize", stories()}, text);
  ASSERT_GT(json.get("ids").size(), 5u);
  EXPECT_EQ(json.get("ids").size(), json.get("pieces").size());
  const Outcome ids = run({"tokenize", stories(), "--ids"}, text);
  const Outcome back = run({"tokenize", stories(), "--decode"}, ids.out);
  EXPECT_EQ(back.code, 0) << back.err;
  EXPECT_EQ(back.out, text);
  EXPECT_EQ(run({"tokenize", stories(), "--decode"}, json.get("ids").dump()).out, text);
  const Outcome table = run({"tokenize", stories()}, text);
  EXPECT_EQ(lines(table.out), static_cast<int64_t>(json.get("ids").size()));
  expect_error({"tokenize", stories(), "--decode"}, 2, "token ids", "12 cat");
  expect_error({"tokenize", stories(), "--decode"}, 2, "99999", "99999");
}

TEST(Render, ShowsSpecialTokensAndSaysWhichAreText) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "tokenizer_config.json")
      << R"({"eos_token": "</s>", "added_tokens_decoder": {"1": {"content": "<s>", "special": true}, "2": {"content": "</s>", "special": true}},
 "chat_template": "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"})";
  const std::string messages = R"([{"role": "user", "content": "Hello"}])";
  EXPECT_EQ(run({"render", folder.path(), "--messages", "-"}, messages).out,
            "<s>user: Hello</s><s>assistant: \n");
  const Json json =
      run_json({"render", folder.path(), "--messages", "-", "--no-generation-prompt"}, messages);
  EXPECT_EQ(json.get("text").as_string(), "<s>user: Hello</s>");
  const Json& literal = json.get("literal").as_array().at(0);
  EXPECT_EQ(literal.get("begin").as_integer(), 9);
  EXPECT_EQ(literal.get("end").as_integer(), 14);
  const Outcome bad = run({"render", folder.path(), "--messages", "-"}, "{");
  EXPECT_NE(bad.code, 0);
  EXPECT_EQ(bad.out, "");
}

TEST(Render, SaysWhichSpecialTokensAMessageSpells) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  fs::copy_file(stories() / "tokenizer.json", folder.path() / "tokenizer.json");
  std::ofstream(folder.path() / "chat_template.jinja") << "<s>{{ messages[0].content }}</s>";
  const Outcome spelled =
      run({"render", folder.path(), "--messages", "-"}, R"([{"role": "user", "content": "a</s>b"}])");
  EXPECT_EQ(spelled.out, "<s>a</s>b</s>\n");
  EXPECT_EQ(lines(spelled.err), 1) << spelled.err;
  EXPECT_TRUE(holds(spelled.err, "\"</s>\"")) << spelled.err;
  EXPECT_EQ(run({"render", folder.path(), "--messages", "-"}, R"([{"role": "user", "content": "a b"}])").err,
            "");
}

TEST(Generate, StreamsTheTextThatJsonHolds) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const std::vector<std::string> words = {"generate",         stories(),          "--prompt",
                                          "Once upon a time", "--max-new-tokens", "24"};
  const Json json = run_json(words);
  EXPECT_EQ(json.get("token_ids").size(), 24u);
  EXPECT_EQ(json.get("prompt_tokens").as_integer(), 5);  // 403 407 261 378 behind BOS
  EXPECT_GT(json.get("tokens_per_second").as_number(), 0);
  EXPECT_GT(json.get("prefill_tokens_per_second").as_number(), 0);
  const Outcome text = run(words);
  EXPECT_EQ(text.code, 0);
  EXPECT_EQ(text.out, json.get("text").as_string() + "\n");
  EXPECT_TRUE(holds(text.err, "24 new tokens")) << text.err;
}

TEST(Chat, AnswersPipedQuestionsAndDropsTheOldestTurns) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  for (const auto& entry : fs::directory_iterator(stories())) {
    fs::copy_file(entry.path(), folder.path() / entry.path().filename());
  }
  std::ofstream(folder.path() / "chat_template.jinja")
      << "{% for m in messages %}{{ m.content }} {% endfor %}";
  std::string input = "Once upon a time\n\n/reset\nThe cat\n";
  Outcome outcome = run({"chat", folder.path(), "--max-new-tokens", "8"}, input + "/exit\nnot asked\n");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_GE(lines(outcome.out), 2) << outcome.out;
  EXPECT_TRUE(holds(outcome.err, "a new conversation")) << outcome.err;

  input.clear();
  for (int i = 0; i < 8; ++i) input += std::string(150, 'x') + "\n";
  outcome = run({"chat", folder.path(), "--max-new-tokens", "8", "--json"}, input);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(lines(outcome.out), 8) << outcome.out;
  EXPECT_TRUE(holds(outcome.err, "the context of 512 tokens is full")) << outcome.err;
}

TEST(WholePath, FormatsOfTheOwnDialectRun) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  for (const std::string format : {"fp8", "log2"}) {
    const fs::path out = folder.path() / format;
    const Json made = run_json({"quantize", stories(), "-o", out, "--method", "rtn", "--format", format,
                                "--dialect", "lowbit", "--group-size", "32"});
    EXPECT_NEAR(made.get("bits_per_weight").as_number(), format == "fp8" ? 9 : 5, 0.1);
    const Json inspected = run_json({"inspect", out});
    EXPECT_EQ(inspected.get("dialect").as_string(), "lowbit");
    EXPECT_TRUE(holds(inspected.get("format").as_string(), format));
    EXPECT_TRUE(holds(run({"inspect", out}).out, format + " codes"));
    EXPECT_EQ(run({"generate", out, "--prompt", "Once", "--max-new-tokens", "4", "--device", "cpu"}).code, 0);
    const Json explained =
        run_json({"explain", format, "--tensor", out.string() + ":model.layers.0.mlp.up_proj.weight",
                  "--group-size", "32", "--rows", "3"});
    EXPECT_LT(explained.get("relative_error").as_number(), 1e-6);  // they have these values already
  }
}

TEST(WholePath, QuantizesInspectsEvaluatesAndCompares) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "int8";
  const std::vector<std::string> quantize = {"quantize", stories(), "-o",           out, "--method", "rtn",
                                             "--bits",   "8",       "--group-size", "-1"};
  std::vector<std::string> plan = quantize;
  plan.push_back("--plan");
  EXPECT_TRUE(holds(run(plan).out, "It can finish")) << run(plan).out;
  EXPECT_FALSE(fs::exists(out));

  const Json quantized = run_json(quantize);
  for (const char* key : {"seconds", "peak_rss_bytes", "peak_anonymous_bytes", "modules"})
    EXPECT_NE(quantized.find(key), nullptr) << key;
  EXPECT_NE(run(quantize).code, 0) << "an existing OUT must not be overwritten silently";

  const Json inspected = run_json({"inspect", out});
  for (const char* key : {"architecture", "parameters", "bytes", "bits_per_weight", "format", "dialect"}) {
    EXPECT_NE(inspected.find(key), nullptr) << key;
  }
  EXPECT_EQ(inspected.get("dialect").as_string(), "gptq");
  const std::string text = run({"inspect", out}).out;
  EXPECT_TRUE(holds(text, "embedding") && holds(text, "-bit codes") && holds(text, "footprint_bytes"))
      << text;
  const Json memory =
      run_json({"inspect", out, "--context", "64", "--batch-size", "2"}).get("memory").get("run");
  EXPECT_EQ(memory.get("context").as_integer(), 64);
  EXPECT_EQ(memory.get("kv_cache_bytes").as_integer(),
            memory.get("kv_cache_bytes_per_token").as_integer() * 64 * 2);

  // On a GPU the two round differently: they multiply other numbers of rows.
  const std::vector<std::string> windows = {"--text",  story_text(), "--context", "64",
                                            "--limit", "4",          "--device",  "cpu"};
  std::vector<std::string> words = {"eval", "divergence", out, "--reference", stories()};
  words.insert(words.end(), windows.begin(), windows.end());
  const Json divergence = run_json(words);
  EXPECT_LT(divergence.get("mean_kl").as_number(), 0.05);
  EXPECT_GT(divergence.get("mean_kl").as_number(), 0);
  EXPECT_GT(divergence.get("top1_agreement").as_number(), 0.9);
  EXPECT_EQ(divergence.get("tokens").as_integer(), 4 * 64);

  words = {"eval", "perplexity", out};
  words.insert(words.end(), windows.begin(), windows.end());
  const Json perplexity = run_json(words);
  EXPECT_EQ(perplexity.get("tokens").as_integer(), 4 * 63);
  EXPECT_NEAR(perplexity.get("perplexity").as_number(), divergence.get("perplexity").as_number(), 1e-6);

  const Outcome table =
      run({"compare", stories(), out, "--text", story_text(), "--context", "64", "--windows", "4"});
  EXPECT_EQ(table.code, 0) << table.err;
  for (const char* part :
       {"hf", "int8", "bytes", "tokens/s", "perplexity", "mean KL", "KL(reference || model)"}) {
    EXPECT_TRUE(holds(table.out, part)) << part << "\n" << table.out;
  }
}

TEST(WholePath, APlanThatCannotFinishExitsFour) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const TemporaryFolder folder;
  const Outcome outcome =
      run({"quantize", stories(), "-o", folder.path() / "o", "--method", "gptq", "--plan"});
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  EXPECT_TRUE(holds(outcome.out, "CANNOT")) << outcome.out;
  EXPECT_TRUE(holds(outcome.out, "rtn")) << outcome.out;
}

TEST(Doctor, PrintsOneObject) {
  const Json json = run_json({"doctor"});
  EXPECT_NE(json.find("kernels"), nullptr);
  ASSERT_NE(json.find("cuda"), nullptr);
  EXPECT_NE(json.find("cuda")->find("problem"), nullptr);
  const Json *gpus = json.find("gpus"), *gpu_kernels = json.find("gpu_kernels");
  ASSERT_NE(gpus, nullptr);
  ASSERT_NE(gpu_kernels, nullptr);
  bool has_gpu = false;
  for (const Json& gpu : gpus->as_array()) {
    if (!gpu.find("copy_gbps")) continue;
    has_gpu = true;
    EXPECT_NE(gpu.find("bf16_tflops"), nullptr);
  }
  EXPECT_EQ(!gpu_kernels->as_array().empty(), has_gpu);
  EXPECT_EQ(json.find("cuda")->find("cublaslt_problem") != nullptr, has_gpu);
  EXPECT_TRUE(holds(run({"doctor"}).out, "Kernels"));
  expect_error({"doctor", "/nowhere"}, 1, "/nowhere");
}

TEST(Doctor, MeasuresOverTheBytesOfAModel) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  const Json json = run_json({"doctor", stories()});
  const Json* bytes = json.find("limits")->find("buffer_bytes");
  ASSERT_NE(bytes, nullptr);
  const auto size = static_cast<double>(fs::file_size(stories() / "model.safetensors"));
  EXPECT_NEAR(static_cast<double>(bytes->as_integer()), size, 1 << 20);  // it reads pieces of 1 MiB
  const Json longer = run_json({"doctor", stories(), "--context", "100000"});
  EXPECT_GT(longer.find("limits")->find("buffer_bytes")->as_integer(), bytes->as_integer() + (1 << 20));
}

const std::string kEncoder = LOWBIT_SOURCE_DIR "/tests/golden/bert_classifier";

TEST(Encoder, IsQuantizedComparedAndClassifies) {
  const TemporaryFolder folder;
  const std::string texts = (folder.path() / "texts.txt").string(),
                    data = (folder.path() / "data.jsonl").string(),
                    calibration = (folder.path() / "calibration.jsonl").string(),
                    out = (folder.path() / "int8").string();
  std::ofstream(texts) << "the water\nwho made it\n\nit is not the same\n";
  std::ofstream examples(data), samples(calibration);
  for (int i = 0; i < 9; ++i)
    examples << R"({"text": "what is )" << i << R"(", "label": ")" << (i % 2 ? "spam" : "ham") << "\"}\n";
  for (int i = 0; i < 60; ++i) samples << R"({"text": "the )" << i << R"( of them and )" << i * 7 << "\"}\n";
  examples.close(), samples.close();
  const Json quantized = run_json({"quantize", kEncoder, "-o", out, "--bits", "8", "--group-size", "16",
                                   "--calibration", calibration, "--samples", "50", "--device", "cpu"});
  EXPECT_TRUE(quantized.get("check").get("passed").as_bool());
  const Json same = run_json({"eval", "embeddings", kEncoder, "--reference", kEncoder, "--text", texts});
  EXPECT_NEAR(same.get("min_cosine").as_number(), 1, 1e-6);
  EXPECT_EQ(same.get("texts").as_integer(), 3);
  const Json int8 = run_json({"eval", "embeddings", out, "--reference", kEncoder, "--text", texts});
  EXPECT_GT(int8.get("min_cosine").as_number(), 0.99);
  // The reference stays as it is.
  const Json nf4 =
      run_json({"eval", "embeddings", kEncoder, "--reference", kEncoder, "--text", texts, "--load-in-4bit"});
  EXPECT_LT(nf4.get("mean_cosine").as_number(), int8.get("mean_cosine").as_number());
  const Json in_8bit = run_json({"eval", "embeddings", kEncoder, "--reference", kEncoder, "--text", texts,
                                 "--load-in-8bit", "--llm-int8-threshold", "5"});
  EXPECT_LT(in_8bit.get("min_cosine").as_number(), 1 - 1e-6);
  EXPECT_GT(in_8bit.get("min_cosine").as_number(), 0.98);
  std::vector<std::string> to_static = {"quantize",
                                        kEncoder,
                                        "-o",
                                        out + "-static",
                                        "--method",
                                        "rtn",
                                        "--format",
                                        "int8",
                                        "--dialect",
                                        "compressed-tensors",
                                        "--activations",
                                        "int8-static",
                                        "--observer",
                                        "percentile",
                                        "--observer-percentile",
                                        "99.95",
                                        "--no-activations-sym"};
  const Outcome without_data = run(to_static);
  EXPECT_NE(without_data.code, 0);
  EXPECT_TRUE(holds(without_data.err, "--calibration")) << without_data.err;
  to_static.insert(to_static.end(), {"--calibration", calibration});
  const Outcome made = run(to_static);
  EXPECT_EQ(made.code, 0) << made.err;
  EXPECT_TRUE(holds(made.out, "inputs of") && holds(made.out, "clipped")) << made.out;
  EXPECT_EQ(run_json({"inspect", out + "-static"}).get("format").as_string(),
            "int8, 8 bits, group_size -1, activations int8-static");
  const Json on_ranges = run_json(
      {"eval", "embeddings", out + "-static", "--reference", kEncoder, "--text", texts, "--device", "cpu"});
  EXPECT_LT(on_ranges.get("min_cosine").as_number(), 1 - 1e-6);
  EXPECT_GT(on_ranges.get("min_cosine").as_number(), 0.97);
  const Json classes = run_json({"eval", "classify", out, "--data", data, "--label-key", "label"});
  EXPECT_EQ(classes.get("samples").as_integer(), 9);
  EXPECT_EQ(classes.get("labels").size(), 3u);
  const Outcome table = run({"eval", "classify", out, "--data", data, "--label-key", "label"});
  for (const char* part : {"accuracy", "macro F1", "as spam", "ham"})
    EXPECT_TRUE(holds(table.out, part)) << table.out;
}

TEST(Bench, ModelsSideBySideEachWithItsOwnOptions) {
  const std::string model = LOWBIT_SOURCE_DIR "/demo/model";
  const std::vector<std::string> few = {"--prompt-tokens", "8", "--new-tokens", "3", "--rounds", "1"};
  std::vector<std::string> words = {"bench", model, model + ":load-in-4bit,bnb-4bit-quant-type=fp4",
                                    "--batch-size", "2,1"};
  words.insert(words.end(), few.begin(), few.end());
  const Outcome table = run(words);
  EXPECT_EQ(table.code, 0) << table.err;
  for (const char* part : {"model:load-in-4bit,bnb-4bit-quant-type=fp4", "load to first token",
                           "reads, 2 x 8", "writes, 1 at once", "protocol:"})
    EXPECT_TRUE(holds(table.out, part)) << table.out;
  EXPECT_TRUE(holds(table.err, "rounded to fp4")) << table.err;
  const Json json = run_json(
      {"bench", model, "--load-in-8bit", "--batch-size", "1", "--prompt-tokens", "8", "--new-tokens", "3"});
  const Json& row = json.get("models").as_array().at(0);
  EXPECT_EQ(row.get("name").as_string(), "model");
  EXPECT_GT(row.get("speeds").as_array().at(0).get("decode_tokens_per_second").get("median").as_number(), 0);

  expect_error({"bench", model + ":load-in-4bits"}, 2,
               "there is no option \"load-in-4bits\", did you mean load-in-4bit?");
  expect_error({"bench", model + ":threads=1"}, 2, "there is no option \"threads\"");
  expect_error({"bench", model + ":llm-int8-threshold=x"}, 2, "llm-int8-threshold");
  expect_error({"bench", model + ":"}, 2, "behind the colon");
  expect_error({"bench", model, kEncoder}, 2, "is an encoder");
  expect_error({"bench", "no/such:load-in-4bit"}, 1, "there is no folder no/such");
  expect_error({"bench", model, "--batch-size", "1,x"}, 2, "--batch-size");
}

TEST(LoadQuantized, WhatCannotBeIsAnErrorOfTheCommandLine) {
  const std::string model = LOWBIT_SOURCE_DIR "/demo/model";
  const auto refused = [&](const std::vector<std::string>& options, std::string_view part) {
    std::vector<std::string> words = {"generate", model, "--prompt", "the", "--device", "cpu"};
    words.insert(words.end(), options.begin(), options.end());
    expect_error(words, 2, part);
  };
  refused({"--load-in-8bit", "--llm-int8-skip-modules", "gate_prj"}, "did you mean \"gate_proj\"?");
  refused({"--load-in-4bit", "--llm-int8-skip-modules", "model.layers.77"}, "did you mean");
  refused({"--load-in-8bit", "--llm-int8-threshold", "nan"}, "llm_int8_threshold is nan");
  refused({"--load-in-8bit", "--llm-int8-threshold=-1"}, "llm_int8_threshold is -1");
  refused({"--load-in-4bit", "--bnb-4bit-quant-type", "nf5"}, "\"nf4\" or \"fp4\"");
  refused({"--bnb-4bit-use-double-quant"}, "add load_in_4bit");
  refused({"--bnb-4bit-compute-dtype", "float32"}, "add load_in_4bit");
  refused({"--load-in-4bit", "--bnb-4bit-compute-dtype", "float16"}, "\"bfloat16\" or \"float32\"");
  refused({"--load-in-4bit", "--bnb-4bit-compute-dtype", "float32", "--kernel", "ref"}, "leave one of them");
  refused({"--load-in-4bit", "--bnb-4bit-quant-storage", "bfloat16"}, "\"uint8\" in memory");
  expect_error({"quantize", model, "-o", "o", "--method", "rtn", "--format", "nf4", "--dialect",
                "bitsandbytes", "--compat", "bitsandbytes-cpu"},
               2, "add bnb_4bit_use_double_quant");
  expect_error({"quantize", model, "-o", "o", "--method", "rtn", "--dialect", "compressed-tensors",
                "--group-size", "100"},
               2, "no multiple of 100");
}

TEST(Encoder, SaysWhatItCanDoWhereItCannot) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{"generate", kEncoder, "--prompt", "the"}, {"chat", kEncoder}}) {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, 2) << words[0];
    EXPECT_TRUE(holds(outcome.err, "is an encoder (BertForSequenceClassification) and writes no text"))
        << outcome.err;
  }
}

}  // namespace
}  // namespace lowbit
