#include "quantize/estimate.h"

#include "checkpoint/bnb.h"
#include "ops/cuda/weights_gpu.h"
#include "ops/encode.h"
#include "quantize/calibration_states.h"
#include "quantize/methods.h"
#include "quantize/options.h"

#include <algorithm>
#include <chrono>
#include <map>

namespace lowbit {
namespace {

// The better of two: the first touches pages and wakes threads.
template <class Body>
double seconds_of(const Body& body) {
  double best = 1e30;
  for (int round = 0; round < 2; ++round) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Layer 0 with its Hessians, over the first samples: seconds per token, attention of that length included.
double layer_seconds_per_token(const OpContext& ops, const Model& model, int64_t batch_size,
                               const Calibration& calibration) {
  const int64_t wanted = ops.gpu ? CalibrationBatches::kGpuBatchTokens : 512;
  std::vector<std::vector<int32_t>> probe;
  int64_t tokens = 0;
  for (const std::vector<int32_t>& ids : calibration.samples) {
    if (tokens >= wanted) break;
    probe.push_back(ids);
    tokens += static_cast<int64_t>(ids.size());
  }
  // A carry that the whole run cannot keep is made anew in the probe as well.
  std::unique_ptr<Block> there;
  if constexpr (kHasCuda) {
    if (ops.gpu) there = model.block(0).moved([&](const Weight& weight) { return to_gpu(ops, weight); });
  }
  const Block& block = there ? *there : model.block(0);
  const std::span<const Stage> stages = block.stages();
  const bool keeps = std::all_of(stages.begin(), stages.end(), [&](const Stage& stage) {
    return CalibrationStates::keeps_carry(stage, calibration.tokens, model.config().hidden_size);
  });
  MemoryMeter meter;
  CalibrationStates states(
      model, ops, probe,
      {.batch_size = batch_size, .carry_budget = keeps ? CalibrationStates::kCarryBudget : 0}, meter);
  return seconds_of([&] {
           for (size_t stage = 0; stage < block.stages().size(); ++stage) {
             states.collect(block, static_cast<int>(stage));
             states.advance(block, static_cast<int>(stage));
           }
           if (ops.gpu) ops.gpu->wait("measuring a layer");
         }) /
         static_cast<double>(tokens);
}

// codebook: null, or what lives as long as the problem.
MatrixProblem probe_problem(const OpContext& ops, const QuantizeOptions& options, int64_t rows, int64_t width,
                            const CodebookChoice* codebook = nullptr) {
  MatrixProblem problem{.module = "probe",
                        .weight = Tensor::allocate(DType::kF32, {rows, width}),
                        .affine = options.affine,
                        .codebook = codebook,
                        .gptq = options.gptq,
                        .as_autogptq = options.compat == "autogptq",
                        .is_last = true};
  for (int64_t k = 0; k < rows * width; ++k)
    problem.weight.mutable_data<float>()[k] = static_cast<float>(k * 7919 % 2003) / 1001.5f - 1;
  if (ops.gpu) problem.weight_there = copied_to(*ops.gpu, problem.weight);
  return problem;
}

Hessian probe_hessian(const OpContext& ops, int64_t width) {
  Tensor gram = Tensor::zeros(DType::kF32, {width, width});
  for (int64_t k = 0; k < width; ++k)
    gram.mutable_data<float>()[k * width + k] = 1 + static_cast<float>(k % 17);
  return make_hessian(ops, ops.gpu ? copied_to(*ops.gpu, gram) : gram, 2 * width);
}

// On a GPU, where small matrices say nothing about large ones: each shape of the model itself, factor
// included.
class MeasuredShapes {
 public:
  MeasuredShapes(const OpContext& ops, const QuantizeOptions& options) : ops_(ops), options_(options) {}

  double seconds(int64_t out, int64_t in) {
    const auto [place, is_new] = known_.try_emplace({out, in});
    if (is_new) {
      const MatrixProblem problem = probe_problem(ops_, options_, out, in);
      const Hessian hessian = probe_hessian(ops_, in);
      place->second = seconds_of([&] {
        FactorCache factors(ops_, hessian);
        quantize_gptq(ops_, problem, factors);
      });
    }
    return place->second;
  }

 private:
  const OpContext& ops_;
  const QuantizeOptions& options_;
  std::map<std::pair<int64_t, int64_t>, double> known_;
};

// What the method costs: `factor` per width^3 of a Hessian, `weight` per weight (the clip search, rounding)
// and `product` per weight and column (updates, refinement, the relative error).
struct MethodCost {
  double factor = 0, weight = 0, product = 0;
};

MethodCost measured_method(const OpContext& ops, const QuantizeOptions& options) {
  constexpr int64_t kRows = 256, kWidths[] = {256, 768};
  MethodCost cost;
  if (is_rounded(options)) {
    const MatrixProblem problem = probe_problem(ops, options, kRows, kWidths[1]);
    const Rounding rounding{.format = *find_format(options.format), .group_size = kBnbGroupSize};
    cost.weight =
        seconds_of([&] { encoded(ops, problem.weight, rounding); }) / static_cast<double>(kRows * kWidths[1]);
    return cost;
  }
  const std::optional<CodebookChoice> codebook = codebook_choice(options);
  double seconds[2] = {};
  for (int i = 0; i < 2; ++i) {
    const int64_t width = kWidths[i];
    const MatrixProblem problem = probe_problem(ops, options, kRows, width, codebook ? &*codebook : nullptr);
    const Hessian hessian = probe_hessian(ops, width);
    const bool is_gptq = options.method == "gptq";
    FactorCache factors(ops, hessian);
    auto run = [&] {
      const QuantizedMatrix result =
          is_gptq ? quantize_gptq(ops, problem, factors) : quantize_rtn(ops, problem);
      if (!result.relative_error)
        relative_error(ops, problem.weight, result.weight, is_gptq ? &hessian : nullptr);
    };
    run();  // fills the cache of factors
    seconds[i] = seconds_of(run) / static_cast<double>(kRows * width);
    if (is_gptq && i == 1) {
      const ColumnOrder order = column_order(hessian.diagonal, width, options.gptq);
      const double each = seconds_of(
          [&] { invert(ops, hessian, order.columns, {.damp_percent = options.gptq.damp_percent}); });
      cost.factor = each / static_cast<double>(width * width * width);
    }
  }
  cost.product = std::max(0.0, (seconds[1] - seconds[0]) / static_cast<double>(kWidths[1] - kWidths[0]));
  cost.weight = std::max(0.0, seconds[0] - cost.product * static_cast<double>(kWidths[0]));
  return cost;
}

}  // namespace

double estimated_seconds(const OpContext& ops, const Model& model, const QuantizeOptions& options,
                         const QuantizationSettings& settings, const Calibration& calibration) {
  const bool is_gptq = options.method == "gptq";
  const MethodCost cost = ops.gpu ? MethodCost() : measured_method(ops, options);
  MeasuredShapes shapes(ops, options);
  double seconds = 0;
  auto add = [&](const ModuleSettings& module) {
    if (!module.is_quantized) return;
    if (ops.gpu) {
      seconds += shapes.seconds(module.out_features, module.in_features);
      return;
    }
    const double in = static_cast<double>(module.in_features), out = static_cast<double>(module.out_features);
    seconds += in * out * (cost.weight + cost.product * in);
  };
  for (size_t layer = 0; layer < settings.layers.size(); ++layer) {
    for (const ModuleSettings& module : settings.layers[layer]) add(module);
    for (const Stage& stage : model.block(static_cast<int64_t>(layer)).stages()) {
      const double width = static_cast<double>(stage.input_width);
      seconds += cost.factor * width * width * width;
    }
  }
  add(settings.head);
  if (calibration.samples.empty()) return seconds;
  const double layer = layer_seconds_per_token(ops, model, options.calibration.batch_size, calibration);
  const double layers = static_cast<double>(model.layer_count());
  if (is_gptq) seconds += layer * layers * static_cast<double>(calibration.tokens);
  if (options.check) {
    // Source and result, each without Hessians: about a layer's measured time together.
    double tokens = 0;
    for (const auto& ids : calibration.held_back) tokens += static_cast<double>(ids.size());
    seconds += layer * layers * std::min(tokens, 4096.0);
  }
  return seconds;
}

}  // namespace lowbit
