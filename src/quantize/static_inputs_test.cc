// W8A8 with static inputs, from calibration to the file and back.
#include "quantize/static_inputs.h"

#include "base/files.h"
#include "lowbit/evaluate.h"
#include "quantize/observers.h"
#include "quantize/options.h"
#include "quantize/run.h"
#include "quantize/test_problem.h"
#include "runtime/forward.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

QuantizeOptions static_options(const std::string& observer = InputOptions{}.observer) {
  QuantizeOptions options;
  options.method = "rtn";
  options.format = "int8";
  options.dialect = "compressed-tensors";
  options.activations = "int8-static";
  options.inputs.observer = observer;
  options.threads = 2;
  options.overwrite = true;
  return options;
}

Calibration tiny_calibration(int samples = 12) {
  Calibration calibration;
  std::mt19937_64 engine(4);
  for (int i = 0; i < samples + 3; ++i) {
    std::vector<int32_t> ids(20 + engine() % 30);
    for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 96);
    if (i < samples) calibration.tokens += static_cast<int64_t>(ids.size());
    (i < samples ? calibration.samples : calibration.held_back).push_back(ids);
  }
  return calibration;
}

struct Tiny {
  TemporaryFolder folder;
  fs::path model = folder.path() / "model", out = folder.path() / "out";
  Calibration calibration = tiny_calibration();

  Tiny() { write_tiny_model(model, {}); }
  QuantizeResult quantized(const QuantizeOptions& options) {
    return quantize_tokens(model, out, options, calibration);
  }
  // Changes a tensor of the model on disk.
  void change(const std::string& name, const std::function<void(std::vector<float>&)>& edit) {
    std::vector<NamedTensor> tensors;
    for (const NamedTensor& named : open_safetensors(model / "model.safetensors").tensors) {
      Tensor values = Tensor::allocate(DType::kF32, named.tensor.shape());
      std::vector<float> list(static_cast<size_t>(values.element_count()));
      for (size_t i = 0; i < list.size(); ++i) list[i] = float_at(named.tensor, static_cast<int64_t>(i));
      if (named.name == name) edit(list);
      std::copy(list.begin(), list.end(), values.mutable_data<float>());
      tensors.push_back({named.name, converted(values, DType::kBF16)});
    }
    write_safetensors(model / "changed", tensors);
    fs::rename(model / "changed", model / "model.safetensors");
  }
  std::string refusal(const QuantizeOptions& options) {
    const std::string message = error_of(ErrorCode::kInvalidArgument, [&] { quantized(options); });
    EXPECT_FALSE(fs::exists(out));
    EXPECT_FALSE(fs::exists(out.string() + ".partial"));
    return message;
  }
};

const ModuleReport& report_of(const QuantizeResult& result, const std::string& module) {
  for (const ModuleReport& report : result.modules) {
    if (report.module == module) return report;
  }
  throw std::runtime_error(module + " is not in the report");
}

const QuantizedTensor& weight_of(const Checkpoint& checkpoint, const std::string& module) {
  return std::get<QuantizedTensor>(checkpoint.weights.at(module + ".weight"));
}

// The inputs of layer 0's q, k and v, from embedding and norm alone.
std::vector<float> first_inputs(const fs::path& model, const Calibration& calibration) {
  const Checkpoint checkpoint = read_checkpoint(model);
  const Tensor table = std::get<Tensor>(checkpoint.weights.at("model.embed_tokens.weight")),
               norm = std::get<Tensor>(checkpoint.weights.at("model.layers.0.input_layernorm.weight"));
  const int64_t width = table.size(1);
  std::vector<float> inputs;
  for (const std::vector<int32_t>& sample : calibration.samples) {
    for (const int32_t id : sample) {
      double squares = 0;
      for (int64_t j = 0; j < width; ++j) squares += std::pow(float_at(table, id * width + j), 2);
      for (int64_t j = 0; j < width; ++j) {
        inputs.push_back(static_cast<float>(float_at(table, id * width + j) * float_at(norm, j) /
                                            std::sqrt(squares / static_cast<double>(width) + 1e-5)));
      }
    }
  }
  return inputs;
}

TEST(StaticInputs, TheReportAndTheFileSayWhatTheInputsAre) {
  for (const bool is_symmetric : {true, false}) {
    SCOPED_TRACE(is_symmetric);
    Tiny tiny;
    QuantizeOptions options = static_options("minmax");
    options.inputs.activations_sym = is_symmetric;
    const QuantizeResult result = tiny.quantized(options);
    EXPECT_TRUE(result.checked && result.passed);
    EXPECT_LT(result.mean_kl, 0.05);
    const std::vector<float> x = first_inputs(tiny.model, tiny.calibration);
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    const InputGrid exact = input_grid(*low, *high, is_symmetric);
    const Checkpoint made = read_checkpoint(tiny.out);
    const InputGrid grid = weight_of(made, "model.layers.0.self_attn.q_proj").input_grid;
    EXPECT_NEAR(grid.scale, exact.scale, 0.004 * exact.scale);  // BF16
    EXPECT_EQ(grid.zero_point, exact.zero_point);
    double error = 0, size = 0;
    int64_t clipped = 0;
    for (const float value : x) {
      error += std::pow(value - decode_input(encode_input(value, grid), grid), 2);
      size += std::pow(value, 2);
      const double code = std::nearbyint(value / double{grid.scale}) + grid.zero_point;
      clipped += code < -128 || code > 127;
    }
    const InputReport input = *report_of(result, "model.layers.0.self_attn.q_proj").input;
    EXPECT_EQ((InputGrid{input.scale, input.zero_point}), grid);
    EXPECT_NEAR(input.relative_error, std::sqrt(error / size), 1e-4 * std::sqrt(error / size));
    EXPECT_NEAR(input.clipped, static_cast<double>(clipped) / static_cast<double>(x.size()), 1e-9);
    // Modules that share an input have one grid; each has its own line in report and file.
    for (const ModuleReport& report : result.modules) {
      ASSERT_TRUE(report.input) << report.module;
      const QuantizedTensor& weight = weight_of(made, report.module);
      EXPECT_EQ(weight.activations, ActivationFormat::kInt8Static);
      EXPECT_EQ(weight.input_grid, (InputGrid{report.input->scale, report.input->zero_point}));
      EXPECT_GT(report.input->relative_error, 1e-3);
      EXPECT_LT(report.input->relative_error, 0.05);
    }
    EXPECT_EQ(weight_of(made, "model.layers.2.mlp.gate_proj").input_grid,
              weight_of(made, "model.layers.2.mlp.up_proj").input_grid);
    EXPECT_NE(result.report_json.find("\"zero_point\""), std::string::npos);
  }
}

TEST(StaticInputs, EveryObserverGivesASoundFileForAnyNumberOfThreads) {
  for (const char* observer : {"auto", "minmax", "moving", "histogram", "percentile", "mse", "entropy"}) {
    SCOPED_TRACE(observer);
    Tiny tiny;
    QuantizeOptions options = static_options(observer);
    const QuantizeResult result = tiny.quantized(options);
    EXPECT_TRUE(result.checked && result.passed);
    EXPECT_LT(result.mean_kl, 0.5);
    const std::string bytes = read_file(tiny.out / "model.safetensors");
    options.threads = 3;
    options.calibration.batch_size = 1;
    tiny.quantized(options);
    EXPECT_TRUE(read_file(tiny.out / "model.safetensors") == bytes);
  }
}

TEST(StaticInputs, TheReportSaysWhichObserverAutoTookAndSymmetryIsRespected) {
  for (const std::optional<bool> asked : {std::optional<bool>(), {true}, {false}}) {
    Tiny tiny;
    QuantizeOptions options = static_options("auto");
    options.inputs.activations_sym = asked;
    const QuantizeResult result = tiny.quantized(options);
    EXPECT_TRUE(result.checked && result.passed);
    const bool is_symmetric = result.modules[0].input->is_symmetric;
    EXPECT_EQ(is_symmetric, asked.value_or(is_symmetric));
    const Checkpoint made = read_checkpoint(tiny.out);
    std::map<std::string, std::string> by_stage;
    for (const ModuleReport& report : result.modules) {
      SCOPED_TRACE(report.module);
      EXPECT_TRUE(report.input->observer == "mse" || report.input->observer == "moving");
      EXPECT_EQ(report.input->is_symmetric, is_symmetric);
      EXPECT_TRUE(!is_symmetric || report.input->zero_point == 0);
      EXPECT_EQ(weight_of(made, report.module).input_grid,
                (InputGrid{report.input->scale, report.input->zero_point}));
      const std::string& name = by_stage[report.module.substr(report.module.rfind('.'))];
      EXPECT_TRUE(name.empty() || name == report.input->observer);
      by_stage[report.module.substr(report.module.rfind('.'))] = report.input->observer;
    }
    EXPECT_EQ(made.quantization->config.get("config_groups")
                  .get("group_0")
                  .get("input_activations")
                  .get("symmetric")
                  .as_bool(),
              is_symmetric);
    EXPECT_NE(result.report_json.find("\"observer\": \"m"), std::string::npos);
    // The grids are those of the observers that are named.
    for (const char* observer : {"mse", "moving"}) {
      QuantizeOptions fixed = static_options(observer);
      fixed.inputs.activations_sym = is_symmetric;
      const QuantizeResult alone = tiny.quantized(fixed);
      for (size_t i = 0; i < alone.modules.size(); ++i) {
        EXPECT_EQ(alone.modules[i].input->observer, observer);
        if (result.modules[i].input->observer != observer) continue;
        EXPECT_EQ(alone.modules[i].input->scale, result.modules[i].input->scale);
        EXPECT_EQ(alone.modules[i].input->clipped, result.modules[i].input->clipped);
      }
    }
  }
}

// In the models's own words: what the rounded model computes from a file is what its report promises.
TEST(StaticInputs, InputsOfLaterLayersComeFromTheDenseModel) {
  Tiny tiny;
  const QuantizeResult all = tiny.quantized(static_options("mse"));
  QuantizeOptions some = static_options("mse");
  some.dynamic = {R"(-:model\.layers\.[01]\.)"};
  const QuantizeResult last = tiny.quantized(some);
  const std::string module = "model.layers.2.mlp.down_proj";
  EXPECT_EQ(report_of(all, module).input->scale, report_of(last, module).input->scale);
  EXPECT_EQ(report_of(all, module).input->relative_error, report_of(last, module).input->relative_error);
}

TEST(StaticInputs, RulesLeaveInputsAsTheyAre) {
  Tiny tiny;
  QuantizeOptions options = static_options();
  options.dynamic = {R"(model\.layers\.\d+\.mlp\.down_proj=activations:none)", R"(-:.*\.k_proj)"};
  const QuantizeResult result = tiny.quantized(options);
  EXPECT_TRUE(result.passed);
  EXPECT_NE(std::find_if(result.warnings.begin(), result.warnings.end(),
                         [](const std::string& text) { return text.find("k_proj") != text.npos; }),
            result.warnings.end());  // vLLM fuses q, k and v
  const Checkpoint made = read_checkpoint(tiny.out);
  EXPECT_EQ(weight_of(made, "model.layers.1.mlp.down_proj").activations, ActivationFormat::kNone);
  EXPECT_EQ(weight_of(made, "model.layers.1.mlp.up_proj").activations, ActivationFormat::kInt8Static);
  EXPECT_FALSE(report_of(result, "model.layers.1.mlp.down_proj").input);
  const Json& groups = made.quantization->config.get("config_groups");
  EXPECT_EQ(
      groups.get("group_1").get("targets").dump(),
      R"(["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"])");
  EXPECT_TRUE(groups.get("group_1").get("input_activations").is_null());
}

TEST(StaticInputs, InputsThatAreNotFiniteAreRefusedByTheModulesNameAndNothingIsWritten) {
  Tiny tiny;
  for (const char* name : {"model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"}) {
    tiny.change(name, [](std::vector<float>& values) {
      for (float& value : values) value *= 1e20f;
    });
  }
  const std::string message = tiny.refusal(static_options());
  EXPECT_NE(message.find("model.layers.1.mlp.down_proj: its input in calibration sample 0"), message.npos)
      << message;
  QuantizeOptions smoothed = static_options();
  smoothed.inputs.smooth_alpha = "0.5";
  EXPECT_NE(tiny.refusal(smoothed).find("not finite"), std::string::npos);
}

// Of this model's matrices o alone is rounded, and the inputs of the second layer's are not finite: observing
// would say so.
TEST(StaticInputs, NothingToSmoothIsSaidBeforeAnythingIsObserved) {
  Tiny tiny;
  for (const char* name : {"model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"}) {
    tiny.change(name, [](std::vector<float>& values) {
      for (float& value : values) value *= 1e20f;
    });
  }
  QuantizeOptions options = static_options();
  options.dynamic = {R"(-:.*\.(q|k|v|gate|up|down)_proj)"};
  EXPECT_NE(tiny.refusal(options).find("not finite"), std::string::npos);
  options.inputs.smooth_alpha = "0.5";
  EXPECT_NE(tiny.refusal(options).find("smooth_alpha: no quantized linears"), std::string::npos);
}

TEST(StaticInputs, NoDataAreAnError) {
  Tiny tiny;
  tiny.calibration.samples.clear();
  EXPECT_NE(tiny.refusal(static_options()).find("no sample"), std::string::npos);
  QuantizeOptions options = static_options();
  EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { quantize(tiny.model, tiny.out, options); })
                .find("--calibration"),
            std::string::npos);
  options.activations = "int8-dynamic";
  options.inputs.smooth_alpha = "auto";
  EXPECT_NE(error_of(ErrorCode::kInvalidArgument, [&] { quantize(tiny.model, tiny.out, options); })
                .find("smooth_alpha needs calibration"),
            std::string::npos);
}

TEST(StaticInputs, OptionsThatDoNotGoTogetherAreRefused) {
  const auto refusal = [](const std::function<void(QuantizeOptions&)>& edit) {
    QuantizeOptions options = static_options();
    edit(options);
    return error_of(ErrorCode::kInvalidArgument, [&] { validate(options); });
  };
  using O = QuantizeOptions;
  const std::pair<const char*, std::function<void(O&)>> cases[] = {
      {"expected one of auto, minmax", [](O& o) { o.inputs.observer = "median"; }},
      {"observer_percentile is 40",
       [](O& o) { o.inputs.observer = "percentile", o.inputs.observer_percentile = 40; }},
      {"observer_percentile is nan",
       [](O& o) { o.inputs.observer = "percentile", o.inputs.observer_percentile = NAN; }},
      {"about observer percentile", [](O& o) { o.inputs.observer_percentile = 99; }},
      {"about activations int8-static",
       [](O& o) { o.activations = "int8-dynamic", o.inputs.observer = "minmax"; }},
      {"about activations int8-static",
       [](O& o) { o.activations = "int8-dynamic", o.inputs.activations_sym = false; }},
      {"about activations int8-static",
       [](O& o) { o.activations = "int8-dynamic", o.inputs.activations_sym = true; }},
      {"smooth_alpha is \"2\"", [](O& o) { o.inputs.smooth_alpha = "2"; }},
      {"smooth_alpha goes with", [](O& o) { o.activations = "none", o.inputs.smooth_alpha = "auto"; }},
      {"smooth_alpha goes with",
       [](O& o) { o.dialect = "bitsandbytes", o.activations = "", o.inputs.smooth_alpha = "auto"; }},
      {"cannot spell activations int8-static", [](O& o) { o.dialect = "bitsandbytes"; }},
      {"go with format int8", [](O& o) { o.format = "nf4", o.dialect = "lowbit"; }},
      {"method rtn", [](O& o) { o.method = "gptq"; }},
      {"without data", [](O& o) { o.activations = "int8-dynamic", o.calibration.data = "x"; }}};
  for (const auto& [part, edit] : cases)
    EXPECT_NE(refusal(edit).find(part), std::string::npos) << part << "\n" << refusal(edit);
}

std::vector<float> hidden_states(const OpContext& ops, const Model& model,
                                 const std::vector<std::vector<int32_t>>& samples) {
  std::vector<float> rows;
  forward_windows(model, ops, samples, 1, DType::kF32, [&](size_t sample, const float* hidden) {
    const auto count = static_cast<int64_t>(samples[sample].size()) * model.config().hidden_size;
    rows.insert(rows.end(), hidden, hidden + count);
  });
  return rows;
}

// Before it is rounded, a smoothed model computes what it did; and its inputs are what the report says.
void expect_equivalent(const fs::path& folder, const std::vector<std::vector<int32_t>>& samples,
                       std::string_view alpha) {
  SCOPED_TRACE(folder.string());
  Machine machine;
  const OpContext ops = machine.ops();
  MemoryMeter meter;
  QuantizeOptions options = static_options("minmax");
  options.inputs.smooth_alpha = alpha;
  options = settled(options);
  SourceModel source = load_source(folder);
  const std::vector<float> before = hidden_states(ops, source.model, samples);
  const QuantizationSettings settings = resolve_settings(source.model, options);
  const ObservedInputs observed = observe_inputs(source, ops, settings, options, samples, meter, {});
  NamedWeights weights = source.checkpoint.weights;
  int smoothed = 0;
  for (const auto& [module, inputs] : observed.modules) {
    Weight& weight = weights.at(module + ".weight");
    weight = smoothed_weight(ops, std::get<Tensor>(weight), inputs);
    smoothed += inputs.smooth_alpha.has_value();
  }
  for (const auto& [name, tensor] : observed.tensors) weights.at(name) = tensor;
  EXPECT_GT(smoothed, 0);
  const Model after = Model::create(source.checkpoint.config, weights);
  const std::vector<float> found = hidden_states(ops, after, samples);
  float difference = 0, most = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    difference = std::max(difference, std::abs(found[i] - before[i]));
    most = std::max(most, std::abs(before[i]));
  }
  EXPECT_GT(difference, 0);
  EXPECT_LT(difference, 1e-5f * most);
  // Ranges of a second look, at the smoothed model, are those of the first.
  CalibrationStates states(after, ops, samples, {}, meter);
  for (int64_t layer = 0; layer < after.layer_count(); ++layer) {
    const Block& block = after.block(layer);
    for (size_t stage = 0; stage < block.stages().size(); ++stage) {
      Observation seen;
      states.visit_input(block, static_cast<int>(stage), [&](const float* rows, int64_t tokens) {
        EXPECT_TRUE(observe(*ops.threads, {}, rows, tokens * block.stages()[stage].input_width, seen));
      });
      for (const int index : block.stages()[stage].linears) {
        const std::string& module = block.linears()[static_cast<size_t>(index)].module;
        const float expected = choose_grid({}, seen).scale;
        EXPECT_NEAR(observed.modules.at(module).report->scale, expected, 0.005f * expected) << module;
      }
      states.advance(block, static_cast<int>(stage));
    }
  }
}

TEST(StaticInputs, AutoGoesWithSmoothing) {
  Tiny tiny;
  QuantizeOptions options = static_options("auto");
  options.inputs.smooth_alpha = "0.5";
  const QuantizeResult result = tiny.quantized(options);
  EXPECT_TRUE(result.checked && result.passed);
  EXPECT_LT(result.mean_kl, 0.5);
  const std::string bytes = read_file(tiny.out / "model.safetensors");
  options.threads = 3;
  tiny.quantized(options);
  EXPECT_TRUE(read_file(tiny.out / "model.safetensors") == bytes);
}

TEST(StaticInputs, ASmoothedModelComputesWhatItDid) {
  const Tiny tiny;
  for (const char* alpha : {"0.5", "auto"}) expect_equivalent(tiny.model, tiny.calibration.samples, alpha);
}

TEST(StaticInputs, SmoothedModelsOfOtherArchitecturesComputeWhatTheyDid) {
  LOWBIT_SKIP_WITHOUT_MATERIAL(material);
  for (const char* name : {"qwen2", "qwen3", "mistral", "gemma3_text", "phi3"})
    expect_equivalent(material / "peers" / "models" / name, tiny_calibration().samples, "0.5");
}

// A few channels of the norms are large, as language models have them.
TEST(StaticInputs, SmoothingHelpsWhereInputsHaveOutlierChannels) {
  Tiny tiny;
  for (int layer = 0; layer < 3; ++layer) {
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      tiny.change(fmt::format("model.layers.{}.{}.weight", layer, norm),
                  [](std::vector<float>& values) { values[3] *= 40, values[17] *= 25, values[40] *= 60; });
    }
    for (const char* module :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}) {
      tiny.change(fmt::format("model.layers.{}.{}.weight", layer, module), [](std::vector<float>& values) {
        for (size_t row = 0; row < values.size(); row += 64)
          values[row + 3] /= 40, values[row + 17] /= 25, values[row + 40] /= 60;
      });
    }
  }
  for (const char* activations : {"int8-static", "int8-dynamic"}) {
    SCOPED_TRACE(activations);
    std::map<std::string, double> kl;
    for (const char* alpha : {"", "0.5", "auto"}) {
      QuantizeOptions options =
          activations == std::string("int8-static") ? static_options("minmax") : static_options();
      options.activations = activations;
      options.inputs.smooth_alpha = alpha;
      if (activations == std::string("int8-dynamic") && alpha == std::string()) continue;  // takes no data
      const QuantizeResult result = tiny.quantized(options);
      kl[alpha] = result.mean_kl;
      const ModuleReport& q = report_of(result, "model.layers.0.self_attn.q_proj");
      EXPECT_EQ(q.smooth_alpha.has_value(), alpha != std::string());
      EXPECT_EQ(report_of(result, "model.layers.1.mlp.down_proj").smooth_alpha.has_value(),
                alpha != std::string());
      EXPECT_FALSE(report_of(result, "model.layers.0.self_attn.o_proj").smooth_alpha);
      const std::string bytes = read_file(tiny.out / "model.safetensors");
      options.threads = 1;
      tiny.quantized(options);
      EXPECT_TRUE(read_file(tiny.out / "model.safetensors") == bytes);
    }
    if (activations == std::string("int8-static")) {
      EXPECT_LT(kl["0.5"], 0.25 * kl[""]);
      EXPECT_LT(kl["auto"], 0.25 * kl[""]);
    } else {
      EXPECT_LT(kl["auto"], 2 * kl["0.5"]);
    }
  }
}

TEST(StaticInputs, AModelWithoutNormsToFoldIntoIsNotSmoothed) {
  Tiny tiny;
  tiny.model = fs::path(LOWBIT_SOURCE_DIR) / "tests/golden/bert_classifier";
  QuantizeOptions options = static_options();
  options.inputs.smooth_alpha = "auto";
  EXPECT_NE(tiny.refusal(options).find("no quantized linears"), std::string::npos);
}

}  // namespace
}  // namespace lowbit
