// The whole act on random tiny models: saving, resuming, checking, planning.
#include "lowbit/quantize.h"

#include "base/files.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "quantize/run.h"
#include "quantize/source_model.h"
#include "quantize/states_test_support.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <fstream>
#include <gtest/gtest.h>
#include <sys/file.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

Calibration random_calibration(int64_t samples, int64_t vocab, uint64_t seed = 3) {
  Calibration calibration;
  calibration.kind = "chat";
  std::mt19937_64 engine(seed);
  for (int64_t i = 0; i < samples + 2; ++i) {
    std::vector<int32_t> ids(10 + engine() % 60);
    for (int32_t& id : ids) id = static_cast<int32_t>(engine() % static_cast<uint64_t>(vocab));
    if (i < samples) {
      calibration.tokens += static_cast<int64_t>(ids.size());
      calibration.samples.push_back(ids);
    } else {
      calibration.held_back.push_back(ids);
    }
  }
  return calibration;
}

class Quantize : public ::testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(model(), shape_);
    calibration_ = random_calibration(12, shape_.vocab);
    options_.affine = {4, 32, true};
    options_.threads = 2;
    options_.device = "cpu";
    options_.calibration.batch_size = 4;
  }
  fs::path model() const { return folder_.path() / "model"; }
  fs::path out(const std::string& name) const { return folder_.path() / name; }
  static std::string file(const fs::path& out) { return read_file(out / "model.safetensors"); }

  TinyModel shape_;
  TemporaryFolder folder_;
  Calibration calibration_;
  QuantizeOptions options_;
};

TEST_F(Quantize, ResultLoadsAndIsCloserThanRounding) {
  const QuantizeResult gptq = quantize_tokens(model(), out("gptq"), options_, calibration_);
  EXPECT_TRUE(gptq.checked);
  EXPECT_TRUE(gptq.passed);
  EXPECT_GT(gptq.mean_kl, 0);
  EXPECT_EQ(gptq.modules.size(), static_cast<size_t>(shape_.layers) * 7 + 1);
  for (const ModuleReport& report : gptq.modules) {
    if (report.method == "none") continue;
    EXPECT_EQ(report.tokens, calibration_.tokens) << report.module;
    EXPECT_GT(report.relative_error, 0.001) << report.module;
    EXPECT_LT(report.relative_error, 0.2) << report.module;
  }
  EXPECT_EQ(gptq.modules.back().method, "none");
  EXPECT_FALSE(fs::exists(out("gptq.partial")));
  EXPECT_NEAR(gptq.bits_per_weight, 4.6, 0.2);

  QuantizeOptions rounding = options_;
  rounding.method = "rtn";
  const QuantizeResult rtn = quantize_tokens(model(), out("rtn"), rounding, calibration_);
  EXPECT_LT(gptq.mean_kl, rtn.mean_kl);
  const Checkpoint checkpoint = read_checkpoint(out("gptq"));
  ASSERT_TRUE(checkpoint.quantization);
  EXPECT_EQ(checkpoint.quantization->affine.bits, 4);
  EXPECT_EQ(checkpoint.quantization->affine.group_size, 32);
  const Json report = parse_json(read_file(out("gptq") / "quantize_report.json"), "report");
  EXPECT_EQ(report.get("modules").size(), gptq.modules.size());
  EXPECT_TRUE(report.get("check").get("passed").as_bool());
  EXPECT_GT(report.get("engines").size(), 0u);
}

TEST_F(Quantize, MoreBitsCostLess) {
  double before = 1e9;
  for (int bits : {2, 3, 4, 8}) {
    options_.affine = {bits, 32, true};
    const QuantizeResult result = quantize_tokens(model(), out(std::to_string(bits)), options_, calibration_);
    EXPECT_LT(result.mean_kl, before) << bits;
    before = result.mean_kl;
  }
  EXPECT_LT(before, 0.01);
}

TEST_F(Quantize, SameBytesForAnyThreadsAndBatches) {
  quantize_tokens(model(), out("first"), options_, calibration_);
  const std::string expected = file(out("first"));
  for (const auto& [threads, batch_size] : {std::pair{1, 1}, {2, 8}, {3, 5}}) {
    options_.threads = threads;
    options_.calibration.batch_size = batch_size;
    const fs::path folder = out(fmt::format("t{}b{}", threads, batch_size));
    quantize_tokens(model(), folder, options_, calibration_);
    EXPECT_EQ(file(folder), expected) << threads << " threads, batches of " << batch_size;
  }
}

TEST_F(Quantize, CarriesMadeAnewGiveTheSameStates) {
  expect_same_states(load_source(model()), calibration_.samples);
}

TEST_F(Quantize, InterruptedRunsGoOnAndGiveTheSameBytes) {
  quantize_tokens(model(), out("whole"), options_, calibration_);
  const std::string expected = file(out("whole"));
  for (int stop_after : {2, 8, 14, 20, 21, 22}) {
    int calls = 0;
    Log log;
    log.progress = [&](const Progress&) {
      if (++calls == stop_after) throw Error(ErrorCode::kInterrupted, "stopped");
    };
    const fs::path folder = out(fmt::format("stopped{}", stop_after));
    error_of(ErrorCode::kInterrupted, [&] { quantize_tokens(model(), folder, options_, calibration_, log); });
    EXPECT_FALSE(fs::exists(folder));
    EXPECT_TRUE(fs::exists(folder.string() + ".partial"));
    const QuantizeResult result = quantize_tokens(model(), folder, options_, calibration_);
    EXPECT_EQ(result.resumed, stop_after >= 8) << stop_after;
    EXPECT_EQ(file(folder), expected) << stop_after;
    EXPECT_FALSE(fs::exists(folder.string() + ".partial"));
  }
}

struct CodebookCase {
  const char *format, *dialect;
  int bits;
  float log_base;
};
constexpr CodebookCase kCodebooks[] = {{"nf4", "bitsandbytes", 4, 2},   {"fp4", "bitsandbytes", 4, 2},
                                       {"nf4", "lowbit", 4, 2},         {"fp8", "lowbit", 8, 2},
                                       {"fp8_e5m2", "lowbit", 8, 2},    {"log2", "lowbit", 3, 2},
                                       {"log2", "lowbit", 5, 1.41421f}, {"fp8", "compressed-tensors", 8, 2}};

// GPTQ over formats with a codebook: closer than rounding, the same bytes for any number of threads and after
// an interruption, and what is read again is what was chosen.
TEST_F(Quantize, CodebooksAreChosenStoredAndResumedLikeTheAffineGrid) {
  shape_.intermediate = 192;  // whole groups of 64
  write_tiny_model(model(), shape_);
  for (const CodebookCase& c : kCodebooks) {
    const std::string name = fmt::format("{}-{}-{}", c.format, c.dialect, c.bits);
    SCOPED_TRACE(name);
    options_.method = "gptq";
    options_.format = c.format;
    options_.dialect = c.dialect;
    options_.affine = {c.bits, options_.dialect == "compressed-tensors" ? -1 : 64, true};
    options_.log_base = c.log_base;
    options_.threads = 2;
    const QuantizeResult gptq = quantize_tokens(model(), out(name), options_, calibration_);
    EXPECT_TRUE(gptq.passed);
    const std::string expected = file(out(name));
    options_.threads = 1;
    quantize_tokens(model(), out(name + "-one"), options_, calibration_);
    EXPECT_TRUE(file(out(name + "-one")) == expected);
    int calls = 0;
    Log log;
    log.progress = [&](const Progress&) {
      if (++calls == 14) throw Error(ErrorCode::kInterrupted, "stopped");
    };
    const fs::path stopped = out(name + "-stopped");
    error_of(ErrorCode::kInterrupted,
             [&] { quantize_tokens(model(), stopped, options_, calibration_, log); });
    EXPECT_TRUE(quantize_tokens(model(), stopped, options_, calibration_).resumed);
    EXPECT_TRUE(file(stopped) == expected);
    options_.method = "rtn";
    const QuantizeResult rtn = quantize_tokens(model(), out(name + "-rtn"), options_, calibration_);
    EXPECT_LT(gptq.mean_kl, rtn.mean_kl);
    const Checkpoint made = read_checkpoint(out(name)), rounded = read_checkpoint(out(name + "-rtn")),
                     source = read_checkpoint(model());
    EXPECT_EQ(made.quantization->dialect, c.dialect);
    EXPECT_EQ(made.quantization->declared_version, c.format);
    for (const ModuleReport& report : rtn.modules) {
      if (report.method == "none") continue;
      const std::string weight = report.module + ".weight";
      const auto& quantized = std::get<QuantizedTensor>(rounded.weights.at(weight));
      const Tensor decoded = dequantized(quantized),
                   dense = converted(std::get<Tensor>(source.weights.at(weight)), DType::kF32);
      double error = 0, size = 0;
      for (int64_t i = 0; i < dense.element_count(); ++i) {
        error += std::pow(double{dense.data<float>()[i]} - decoded.data<float>()[i], 2);
        size += std::pow(dense.data<float>()[i], 2);
      }
      EXPECT_NEAR(std::sqrt(error / size) / report.relative_error, 1, 1e-5) << report.module;
    }
  }
}

// Every format in every dialect that can spell it. With double quantization an offset is written in digits.
TEST_F(Quantize, PlanHasTheBytesOfTheFile) {
  struct Case {
    const char *method, *format, *dialect;
    AffineOptions affine = {};
    bool is_nested = false;
    const char* activations = "";
  };
  const Case cases[] = {{"rtn", "affine", "gptq", {4, 32, false}},
                        {"rtn", "nf4", "bitsandbytes"},
                        {"rtn", "fp4", "bitsandbytes", {}, true},
                        {"rtn", "int8", "bitsandbytes"},
                        {"rtn", "int8", "compressed-tensors"},
                        {"rtn", "int8", "compressed-tensors", {}, false, "int8-dynamic"},
                        {"rtn", "affine", "compressed-tensors", {4, 16, false}},
                        {"gptq", "affine", "compressed-tensors", {8, -1, true}},
                        {"gptq", "fp8", "compressed-tensors", {8, -1, true}},
                        {"rtn", "fp8", "lowbit", {8, 32, true}},
                        {"gptq", "nf4", "lowbit", {4, 16, true}},
                        {"rtn", "log2", "lowbit", {5, 32, true}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} {} {} {}", c.method, c.format, c.dialect, c.activations));
    options_.method = c.method;
    options_.format = c.format;
    options_.dialect = c.dialect;
    options_.affine = c.affine;
    options_.bnb_4bit_use_double_quant = c.is_nested;
    options_.activations = c.activations;
    options_.overwrite = true;
    options_.dynamic = {"-:.*layers.1.*o_proj"};
    const Json plan = parse_json(plan_json(model(), out("out"), options_), "plan");
    if (std::string(c.method) == "rtn") {
      EXPECT_TRUE(plan.get("feasible").as_bool()) << plan.get("reasons").dump();
      EXPECT_GT(plan.get("estimated_seconds").as_number(), 0);
      quantize(model(), out("out"), options_);
    } else {
      quantize_tokens(model(), out("out"), options_, calibration_);
    }
    int64_t bytes = 0, modules = 0;
    std::map<std::string, int64_t> components;
    for (const NamedTensor& named : open_safetensors(out("out") / "model.safetensors").tensors) {
      bytes += static_cast<int64_t>(named.tensor.byte_count());
      components[named.name.ends_with(".weight_scale") || named.name.ends_with(".scales") ||
                         named.name.ends_with(".absmax") || named.name.ends_with(".nested_absmax") ||
                         named.name.ends_with(".SCB") || named.name.ends_with(".weight_format")
                     ? "scales"
                     : "others"] += static_cast<int64_t>(named.tensor.byte_count());
      modules += named.name.find(".quant_state.") != std::string::npos;
    }
    const int64_t planned = plan.get("tensor_bytes").as_integer();
    EXPECT_LE(bytes, planned);
    EXPECT_GE(bytes, planned - (c.is_nested ? 22 * modules : 0));
    EXPECT_EQ(plan.get("bytes_by_component").get("scales").as_integer(), components["scales"]);
    EXPECT_EQ(plan.get("engines").size() > 0, c.dialect == std::string("gptq"));
  }
}

// The same codes, scales and zero points as in dialect gptq.
TEST_F(Quantize, CompressedTensorsHoldsWhatGptqChose) {
  for (const AffineOptions& affine :
       {AffineOptions{4, 32, true}, {4, 32, false}, {8, -1, true}, {2, 16, false}}) {
    const std::string name = fmt::format("{}-{}-{}", affine.bits, affine.group_size, affine.sym);
    SCOPED_TRACE(name);
    options_.affine = affine;
    options_.checkpoint_format = "gptq_v2";
    options_.dialect = "gptq";
    quantize_tokens(model(), out(name + "-gptq"), options_, calibration_);
    options_.checkpoint_format = "";
    options_.dialect = "compressed-tensors";
    const QuantizeResult result = quantize_tokens(model(), out(name), options_, calibration_);
    EXPECT_TRUE(result.passed || affine.bits == 2);
    const Checkpoint made = read_checkpoint(out(name)), expected = read_checkpoint(out(name + "-gptq"));
    EXPECT_EQ(made.quantization->dialect, "compressed-tensors");
    ASSERT_EQ(made.weights.size(), expected.weights.size());
    for (const auto& [weight, theirs] : expected.weights) {
      const auto* quantized = std::get_if<QuantizedTensor>(&theirs);
      if (!quantized) continue;
      const auto& ours = std::get<QuantizedTensor>(made.weights.at(weight));
      EXPECT_TRUE(same_bytes(dequantized(ours), dequantized(*quantized))) << weight;
    }
    EXPECT_EQ(made.quantization->config.get("ignore").dump(), R"(["lm_head"])");
  }
  options_.affine = {4, 64, true};
  const auto refusal = [&] {
    return error_of(ErrorCode::kInvalidArgument,
                    [&] { quantize_tokens(model(), out("out"), options_, calibration_); });
  };
  EXPECT_NE(refusal().find("down_proj has 160 columns, no multiple of 64: compressed-tensors knows no short"),
            std::string::npos)
      << refusal();
  options_.affine = {3, 32, true};
  EXPECT_NE(refusal().find("takes 2, 4 and 8"), std::string::npos);
  options_.affine = {4, 32, true};
  options_.dynamic = {".*down_proj=bits:8"};
  EXPECT_NE(refusal().find("one scheme for all modules"), std::string::npos);
  options_.dynamic = {};
  options_.gptq.desc_act = true;
  EXPECT_NE(refusal().find("static_groups"), std::string::npos);
  options_.gptq.desc_act = false;
  options_.format = "fp8";
  EXPECT_NE(refusal().find("scale per row"), std::string::npos);
}

TEST_F(Quantize, GroupsOfBitsandbytesMustFillRows) {
  options_.affine.group_size = 64;
  options_.format = "nf4";
  options_.dialect = "bitsandbytes";
  const std::string message = error_of(ErrorCode::kInvalidArgument,
                                       [&] { quantize_tokens(model(), out("out"), options_, calibration_); });
  EXPECT_NE(message.find("down_proj has 160 columns"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(out("out.partial")));
  options_.dynamic = {"-:.*down_proj"};
  EXPECT_TRUE(quantize_tokens(model(), out("out"), options_, calibration_).passed);
}

TEST_F(Quantize, ModulesMayHaveGroupsOfTheirOwnInLowbitsDialect) {
  options_.format = "log2";
  options_.dialect = "lowbit";
  options_.dynamic = {".*down_proj=group_size:16"};
  quantize_tokens(model(), out("out"), options_, calibration_);
  const Checkpoint made = read_checkpoint(out("out"));
  const auto& down = std::get<QuantizedTensor>(made.weights.at("model.layers.0.mlp.down_proj.weight"));
  const auto& up = std::get<QuantizedTensor>(made.weights.at("model.layers.0.mlp.up_proj.weight"));
  EXPECT_EQ(down.group_size, 16);
  EXPECT_EQ(up.group_size, 32);
  options_.dynamic = {".*down_proj=bits:8"};
  const std::string message = error_of(
      ErrorCode::kInvalidArgument, [&] { quantize_tokens(model(), out("other"), options_, calibration_); });
  EXPECT_NE(message.find("bits"), std::string::npos);
}

TEST_F(Quantize, OtherOptionsStartAfreshAndSayWhatDiffers) {
  auto stop = [&](const QuantizeOptions& options) {
    int calls = 0;
    Log log;
    log.progress = [&](const Progress&) {
      if (++calls == 10) throw Error(ErrorCode::kInterrupted, "stopped");
    };
    error_of(ErrorCode::kInterrupted,
             [&] { quantize_tokens(model(), out("out"), options, calibration_, log); });
  };
  stop(options_);
  QuantizeOptions other = options_;
  other.gptq.mse = 0;
  const QuantizeResult result = quantize_tokens(model(), out("out"), other, calibration_);
  EXPECT_FALSE(result.resumed);
  ASSERT_FALSE(result.warnings.empty());
  bool named = false;
  for (const std::string& warning : result.warnings)
    named = named || warning.find("options.gptq differs") != std::string::npos;
  EXPECT_TRUE(named) << result.warnings[0];
  // A damaged layer is made again.
  fs::remove_all(out("out"));
  stop(options_);
  const fs::path layer = folder_.path() / "out.partial" / "layer-00000.safetensors";
  ASSERT_TRUE(fs::exists(layer));
  fs::resize_file(layer, fs::file_size(layer) / 2);
  const QuantizeResult again = quantize_tokens(model(), out("out"), options_, calibration_);
  EXPECT_FALSE(again.resumed);
}

TEST_F(Quantize, TwoRunsDoNotShareAFolder) {
  fs::create_directories(folder_.path() / "out.partial");
  const fs::path lock = folder_.path() / "out.partial" / "lock";
  std::ofstream(lock).put(' ');
  FILE* held = fopen(lock.c_str(), "r+");
  ASSERT_EQ(flock(fileno(held), LOCK_EX), 0);
  const std::string message = error_of(ErrorCode::kInvalidArgument,
                                       [&] { quantize_tokens(model(), out("out"), options_, calibration_); });
  EXPECT_NE(message.find("another run"), std::string::npos);
  fclose(held);
}

TEST_F(Quantize, OutputIsNotPutOverThingsThatMatter) {
  auto refused = [&](const fs::path& where) {
    return error_of(ErrorCode::kInvalidArgument,
                    [&] { quantize_tokens(model(), where, options_, calibration_); });
  };
  EXPECT_NE(refused(model()).find("overlap"), std::string::npos);
  EXPECT_NE(refused(model() / "inside").find("overlap"), std::string::npos);
  EXPECT_NE(refused(folder_.path()).find("overlap"), std::string::npos);
  fs::create_directories(out("out"));
  std::ofstream(out("out") / "precious") << "x";
  EXPECT_NE(refused(out("out")).find("--overwrite"), std::string::npos);
  EXPECT_TRUE(fs::exists(out("out") / "precious"));
  options_.overwrite = true;
  quantize_tokens(model(), out("out") / "", options_, calibration_);
  EXPECT_FALSE(fs::exists(out("out") / "precious"));
  EXPECT_TRUE(fs::exists(out("out") / "model.safetensors"));
  error_of(ErrorCode::kUnsupported,
           [&] { quantize_tokens(out("out"), out("again"), options_, calibration_); });
}

TEST_F(Quantize, EveryOptionSetLoadsAgain) {
  int index = 0;
  auto run = [&](auto change) {
    QuantizeOptions options = options_;
    change(options);
    const fs::path folder = out(fmt::format("set{}", index++));
    const QuantizeResult result = quantize_tokens(model(), folder, options, calibration_);
    EXPECT_TRUE(result.checked && result.passed) << index - 1 << ": " << result.mean_kl;
    EXPECT_LT(result.mean_kl, 0.6) << index - 1;
    return parse_json(read_file(folder / "quantize_config.json"), "config");
  };
  EXPECT_FALSE(run([](auto& o) { o.gptq.act_group_aware = false; }).get("desc_act").as_bool());
  EXPECT_TRUE(run([](auto& o) { o.gptq.desc_act = true; }).get("desc_act").as_bool());
  EXPECT_FALSE(run([](auto& o) { o.gptq.desc_act = o.gptq.static_groups = true; }).get("desc_act").as_bool());
  EXPECT_EQ(run([](auto& o) { o.affine.sym = false; }).get("checkpoint_format").as_string(), "gptq_v2");
  EXPECT_EQ(run([](auto& o) { o.affine.sym = false, o.checkpoint_format = "gptq"; })
                .get("checkpoint_format")
                .as_string(),
            "gptq");
  run([](auto& o) { o.affine.group_size = -1, o.affine.bits = 8; });
  run([](auto& o) { o.affine.group_size = 48; });
  run([](auto& o) { o.gptq.true_sequential = false; });
  run([](auto& o) { o.compat = "autogptq"; });
  run([](auto& o) { o.max_shard_size = "20000"; });
  const Json config = run([](auto& o) { o.dynamic = {"-:.*down_proj", ".*layers\\.1\\.=bits:8"}; });
  EXPECT_EQ(config.get("dynamic").size(), 2u);
}

TEST_F(Quantize, UntiedHeadCanBeQuantized) {
  shape_.is_tied = false;
  fs::remove_all(model());
  write_tiny_model(model(), shape_);
  options_.lm_head = true;
  const QuantizeResult result = quantize_tokens(model(), out("out"), options_, calibration_);
  EXPECT_EQ(result.modules.back().module, "lm_head");
  EXPECT_EQ(result.modules.back().method, "gptq");
  const Checkpoint checkpoint = read_checkpoint(out("out"));
  EXPECT_TRUE(std::holds_alternative<QuantizedTensor>(checkpoint.weights.at("lm_head.weight")));
}

TEST_F(Quantize, NonFiniteActivationsFallBackAndFailTheCheck) {
  // An embedding row of infinities reaches every later layer.
  SafetensorsFile file = open_safetensors(model() / "model.safetensors");
  std::vector<NamedTensor> tensors = file.tensors;
  Tensor table = Tensor::allocate(DType::kBF16, tensors[0].tensor.shape());
  std::memcpy(table.mutable_bytes(), tensors[0].tensor.bytes(), table.byte_count());
  for (int64_t i = 0; i < shape_.hidden; ++i) table.mutable_data<uint16_t>()[i] = 0x7f80;
  tensors[0].tensor = table;
  write_safetensors(model() / "model.safetensors", tensors);
  calibration_.samples[0][0] = 0;
  calibration_.held_back[0][0] = 0;
  const QuantizeResult result = quantize_tokens(model(), out("out"), options_, calibration_);
  EXPECT_TRUE(result.checked);
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.modules[0].method, "rtn");
  EXPECT_NE(result.modules[0].note.find("non-finite"), std::string::npos);
  EXPECT_TRUE(fs::exists(out("out") / "model.safetensors"));
}

TEST_F(Quantize, PlanKnowsTheBytes) {
  for (const auto& [bits, group_size, sym] :
       {std::tuple{4, 32, true}, {3, -1, true}, {2, 48, false}, {8, 64, true}}) {
    options_.affine = {bits, group_size, sym};
    options_.dynamic = {"-:.*layers\\.0\\.self_attn.*"};
    options_.method = "rtn";
    const Json plan = parse_json(plan_json(model(), out("planned"), options_), "plan");
    EXPECT_TRUE(plan.get("feasible").as_bool()) << plan.dump(2);
    EXPECT_FALSE(fs::exists(out("planned")));
    const fs::path folder = out(fmt::format("real{}", bits));
    quantize_tokens(model(), folder, options_, calibration_);
    int64_t bytes = 0, by_component = 0;
    for (const NamedTensor& entry : open_safetensors(folder / "model.safetensors").tensors) {
      bytes += static_cast<int64_t>(entry.tensor.byte_count());
    }
    EXPECT_EQ(plan.get("tensor_bytes").as_integer(), bytes);
    for (const auto& [name, value] : plan.get("bytes_by_component").as_object())
      by_component += value.as_integer();
    EXPECT_EQ(by_component, bytes);
  }
  options_.method = "gptq";
  const Json plan = parse_json(plan_json(model(), out("planned"), options_), "plan");
  EXPECT_FALSE(plan.get("feasible").as_bool());
  EXPECT_NE(plan.get("reasons").as_array()[0].as_string().find("--method rtn"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
