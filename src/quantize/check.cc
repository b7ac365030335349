#include "quantize/check.h"

#include "base/fail.h"
#include "ops/softmax.h"
#include "quantize/source_model.h"
#include "runtime/forward.h"
#include "runtime/gpu_placement.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace lowbit {
namespace {

constexpr int64_t kMostTokens = 4096;

struct Sums {
  double kl = 0;
  int64_t tokens = 0, agreeing = 0;
  bool source_is_finite = true, result_is_finite = true;
};

bool all_finite(const OpContext& ops, const float* logits, int64_t rows, int64_t vocab) {
  std::vector<double> sums(static_cast<size_t>(rows));
  log_sum_exp(ops, logits, rows, vocab, sums.data());
  return std::all_of(sums.begin(), sums.end(), [](double sum) { return std::isfinite(sum); });
}

void compare(const OpContext& ops, const Model& source, const Model& result, const float* expected,
             const float* found, int64_t tokens, Sums& sums) {
  const int64_t width = source.config().hidden_size, vocab = source.head_outputs();
  const int64_t step = std::clamp<int64_t>((int64_t{8} << 20) / vocab, 1, 256);
  for (int64_t row = 0; row < tokens; row += step) {
    const int64_t rows = std::min(step, tokens - row);
    const Scratch scratch = ops.workspace->take(static_cast<size_t>(2 * rows * vocab) * sizeof(float));
    float* reference = scratch.as<float>();
    float* logits = reference + rows * vocab;
    source.logits(ops, expected + row * width, rows, MatmulMode::kPrefill, reference);
    result.logits(ops, found + row * width, rows, MatmulMode::kPrefill, logits);
    sums.source_is_finite = sums.source_is_finite && all_finite(ops, reference, rows, vocab);
    sums.result_is_finite = sums.result_is_finite && all_finite(ops, logits, rows, vocab);
    sums.tokens += rows;
    if (!sums.source_is_finite || !sums.result_is_finite) continue;
    std::vector<double> kl(static_cast<size_t>(rows));
    std::vector<int32_t> best(static_cast<size_t>(rows)), other(static_cast<size_t>(rows));
    divergence(ops, reference, logits, rows, vocab, kl.data());
    argmax(ops, reference, rows, vocab, best.data());
    argmax(ops, logits, rows, vocab, other.data());
    for (size_t i = 0; i < kl.size(); ++i) {
      sums.kl += kl[i];
      sums.agreeing += best[i] == other[i];
    }
  }
}

// Each in half of what is free, its layers streamed where need be. False: even that is too little.
bool move_to_gpu(std::span<Model* const> models, const OpContext& context,
                 const std::vector<std::vector<int32_t>>& samples, const Log& log) {
  int64_t longest = 1;
  for (const auto& ids : samples)
    longest = std::max(longest, std::min(kMostTokens, static_cast<int64_t>(ids.size())));
  const uint64_t each = context.gpu->memory().available() / models.size();
  std::vector<std::pair<GpuSizes, GpuPlan>> plans;
  for (Model* model : models) {
    const GpuSizes sizes = gpu_sizes(*model, context.activations(), longest);
    plans.emplace_back(sizes, plan_layers(sizes, each));
    if (!plans.back().second.fits) return false;
  }
  for (size_t i = 0; i < models.size(); ++i)
    place_on_gpu(*models[i], context, plans[i].first, plans[i].second, log);
  return true;
}

}  // namespace

double largest_allowed_kl(int bits) {
  switch (bits) {
    case 8:
      return 0.2;
    case 4:
      return 2;
    case 3:
      return 5;
    default:
      return 12;  // 2 bits: above log(vocabulary), only nonsense with confidence exceeds it
  }
}

CheckResult check_result(const std::filesystem::path& source_folder,
                         const std::filesystem::path& result_folder, const OpContext& given,
                         const std::vector<std::vector<int32_t>>& samples, int bits, MemoryMeter& meter,
                         const Log& log) {
  SourceModel source = load_source(source_folder);
  const Checkpoint checkpoint = read_checkpoint(result_folder);
  Model result = Model::create(checkpoint.config, checkpoint.weights);
  Workspace cpu_workspace;
  const OpContext cpu{given.threads, &cpu_workspace, given.kernels};
  Model* const models[] = {&source.model, &result};
  const bool is_there = given.gpu && move_to_gpu(models, given, samples, log);
  if (given.gpu && !is_there)
    log.info("both models do not fit into what may be taken of the GPU's memory: the check runs on the CPU");
  const OpContext& ops = given.gpu && !is_there ? cpu : given;
  const int64_t width = source.model.config().hidden_size;
  Sums sums;
  for (size_t i = 0; i < samples.size() && sums.tokens < kMostTokens; ++i) {
    std::vector<int32_t> ids = samples[i];
    ids.resize(std::min(ids.size(), static_cast<size_t>(kMostTokens - sums.tokens)));
    const int64_t tokens = static_cast<int64_t>(ids.size());
    const size_t bytes = static_cast<size_t>(tokens * width) * sizeof(float);
    const Scratch expected = ops.workspace->take(bytes), found = ops.workspace->take(bytes);
    auto run = [&](const Model& model, void* hidden) {
      forward_windows(model, ops, std::span(&ids, 1), 1, ops.activations(),
                      [&](size_t, const float* rows) { copy(ops, hidden, rows, bytes); });
      meter.sample();
    };
    run(source.model, expected.as<void>());
    run(result, found.as<void>());
    // Classes are read off a sequence's first row.
    const bool is_of_classes = source.model.config().head_kind == HeadKind::kClasses;
    compare(ops, source.model, result, expected.as<float>(), found.as<float>(), is_of_classes ? 1 : tokens,
            sums);
    meter.sample();
    log.report({"check", static_cast<int64_t>(i) + 1, static_cast<int64_t>(samples.size()), ""});
  }
  ops.workspace->release();

  CheckResult check;
  check.tokens = sums.tokens;
  check.mean_kl = sums.tokens > 0 ? sums.kl / static_cast<double>(sums.tokens) : 0;
  check.top1_agreement =
      sums.tokens > 0 ? static_cast<double>(sums.agreeing) / static_cast<double>(sums.tokens) : 0;
  const double limit = largest_allowed_kl(bits);
  if (!sums.result_is_finite || !sums.source_is_finite) {
    check.passed = false;
    check.mean_kl = std::nan("");
    check.verdict = sums.source_is_finite ? "the saved model gives logits that are not finite"
                                          : "the source model itself gives logits that are not finite";
  } else if (!(check.mean_kl <= limit)) {
    check.passed = false;
    check.verdict =
        fmt::format("mean KL {:.4f} on {} held-back tokens, more than the {} that {} bits may cost",
                    check.mean_kl, check.tokens, limit, bits);
  } else {
    check.verdict = fmt::format(
        "mean KL {:.4f}, top-1 agreement {:.1f} % on {} held-back tokens (allowed for {} bits: {})",
        check.mean_kl, 100 * check.top1_agreement, check.tokens, bits, limit);
  }
  return check;
}

void set_check(const CheckResult& check, QuantizeResult& result) {
  result.checked = true;
  result.passed = check.passed;
  result.mean_kl = check.mean_kl;
  result.top1_agreement = check.top1_agreement;
  result.check_tokens = check.tokens;
}

}  // namespace lowbit
