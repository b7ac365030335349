#include "base/fail.h"
#include "eval/token_scores.h"
#include "eval/validate.h"
#include "eval/windows.h"
#include "ops/softmax.h"
#include "runtime/forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lowbit {
namespace {

// What the windows add up to.
struct Sums {
  std::vector<double> kl;
  RunningMean kl_mean, nll, reference_nll;
  int64_t agreeing = 0;
};

class WindowComparison {
 public:
  WindowComparison(const LanguageModel::State& model, const LanguageModel::State& reference)
      : model_(model),
        reference_(reference),
        vocab_(model.model.config().vocab_size),
        chunk_(logit_rows(vocab_)) {}

  // All positions of one window, both models' last hidden states given.
  void add(size_t window, const std::vector<int32_t>& ids, const float* hidden, const float* reference_hidden,
           Sums& sums) {
    const int64_t count = static_cast<int64_t>(ids.size());
    for (int64_t row = 0; row < count; row += chunk_) {
      add_rows(window, ids, row, std::min(chunk_, count - row), hidden, reference_hidden, sums);
    }
  }

 private:
  void add_rows(size_t window, const std::vector<int32_t>& ids, int64_t row, int64_t rows,
                const float* hidden, const float* reference_hidden, Sums& sums) {
    const OpContext ops = model_.ops(), reference_ops = reference_.ops();
    const size_t bytes = static_cast<size_t>(chunk_ * vocab_) * sizeof(float),
                 size = static_cast<size_t>(rows);
    const Scratch logits = ops.workspace->take(bytes),
                  reference_logits = reference_ops.workspace->take(bytes);
    float *ours = logits.as<float>(), *theirs = reference_logits.as<float>();
    model_.model.logits(ops, hidden + row * model_.model.config().hidden_size, rows, MatmulMode::kPrefill,
                        ours);
    reference_.model.logits(reference_ops, reference_hidden + row * reference_.model.config().hidden_size,
                            rows, MatmulMode::kPrefill, theirs);

    if (reference_ops.gpu)
      reference_ops.gpu->wait("computing the reference's logits");  // its queue is another
    std::vector<double> kl(size), nll(size), reference_nll(size);
    std::vector<int32_t> best(size), reference_best(size);
    divergence(ops, theirs, ours, rows, vocab_, kl.data());
    argmax(ops, ours, rows, vocab_, best.data());
    argmax(ops, theirs, rows, vocab_, reference_best.data());
    // The last position of the window has no next id to be scored against.
    const int64_t scored = std::min(rows, static_cast<int64_t>(ids.size()) - 1 - row);
    if (scored > 0) {
      token_nll(ops, ours, ids.data() + row + 1, scored, vocab_, nll.data());
      token_nll(ops, theirs, ids.data() + row + 1, scored, vocab_, reference_nll.data());
    }
    for (int64_t i = 0; i < rows; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (i < scored && !std::isfinite(reference_nll[at]))
        fail_not_finite(reference_.folder, window, row + i);
      if (!std::isfinite(kl[at]) || (i < scored && !std::isfinite(nll[at])))
        fail_not_finite(model_.folder, window, row + i);
      const double value = std::max(kl[at], 0.0);  // rounding takes a KL of almost 0 below it
      sums.kl.push_back(value);
      sums.kl_mean.add(value);
      sums.agreeing += best[at] == reference_best[at];
      if (i < scored) {
        sums.nll.add(nll[at]);
        sums.reference_nll.add(reference_nll[at]);
      }
    }
  }

  const LanguageModel::State& model_;
  const LanguageModel::State& reference_;
  int64_t vocab_, chunk_;
};

void check_same_vocabulary(const LanguageModel& model, const LanguageModel& reference) {
  if (model.vocab_size() != reference.vocab_size()) {
    fail(ErrorCode::kInvalidArgument,
         "the model's vocabulary has {} entries, the reference's {}: their distributions cannot be compared; "
         "the reference "
         "must be the model that {} was made from",
         model.vocab_size(), reference.vocab_size(), model.state().folder.string());
  }
}

void check_same_ids(const std::vector<int32_t>& ids, const std::vector<int32_t>& reference_ids) {
  const size_t common = std::min(ids.size(), reference_ids.size());
  for (size_t i = 0; i < common; ++i) {
    if (ids[i] == reference_ids[i]) continue;
    fail(ErrorCode::kInvalidArgument,
         "the two tokenizers read the text differently: id {} of it is {} for the model and {} for the "
         "reference",
         i, ids[i], reference_ids[i]);
  }
  if (ids.size() != reference_ids.size()) {
    fail(ErrorCode::kInvalidArgument,
         "the two tokenizers read the text differently: {} ids for the model and {} for the reference",
         ids.size(), reference_ids.size());
  }
}

}  // namespace

DivergenceResult divergence(const LanguageModel& model, const LanguageModel& reference,
                            const std::filesystem::path& text, const DivergenceOptions& options,
                            const Log& log) {
  validate(options);
  check_same_vocabulary(model, reference);
  if (model.device() != reference.device()) {
    fail(ErrorCode::kUnsupported,
         "the model runs on {}, its reference on {}: give --device cpu or --device cuda, so that both run on "
         "one",
         model.device(), reference.device());
  }
  check_context(model, options.context);
  check_context(reference, options.context);
  const std::vector<int32_t> ids = load_text_ids(model.tokenizer(), text);
  check_same_ids(ids, load_text_ids(reference.tokenizer(), text));
  const WindowPlan plan = plan_windows(ids, {.context = options.context, .limit = options.limit}, -1);

  const auto start = std::chrono::steady_clock::now();
  const LanguageModel::State &ours = model.state(), &theirs = reference.state();
  WindowComparison comparison(ours, theirs);
  Sums sums;
  const int64_t total = static_cast<int64_t>(plan.windows.size());
  const size_t batch = static_cast<size_t>(std::min(options.batch_size, total));
  const size_t width = static_cast<size_t>(ours.model.config().hidden_size);
  const size_t window_floats = static_cast<size_t>(options.context) * width;
  const Scratch kept = ours.workspace->take(batch * window_floats * sizeof(float));
  log.report({.phase = "divergence", .done = 0, .total = total});
  for (size_t first = 0; first < plan.windows.size(); first += batch) {
    const std::span<const std::vector<int32_t>> windows =
        std::span(plan.windows).subspan(first, std::min(batch, plan.windows.size() - first));
    forward_windows(ours.model, ours.ops(), windows, options.batch_size, ours.cache_dtype,
                    [&](size_t window, const float* hidden) {
                      float* const to = kept.as<float>() + window * window_floats;
                      copy(ours.ops(), to, hidden, window_floats * sizeof(float));
                    });
    forward_windows(
        theirs.model, theirs.ops(), windows, options.batch_size, theirs.cache_dtype,
        [&](size_t window, const float* hidden) {
          comparison.add(first + window, windows[window], kept.as<float>() + window * window_floats, hidden,
                         sums);
          log.report(
              {.phase = "divergence", .done = static_cast<int64_t>(first + window) + 1, .total = total});
        });
  }

  DivergenceResult result;
  result.memory = model.memory();
  result.reference_memory = reference.memory();
  result.tokens = sums.kl_mean.count();
  result.mean_kl = sums.kl_mean.mean();
  result.standard_error = sums.kl_mean.standard_error();
  std::sort(sums.kl.begin(), sums.kl.end());
  result.median_kl = percentile(sums.kl, 0.5);
  result.p95_kl = percentile(sums.kl, 0.95);
  result.p99_kl = percentile(sums.kl, 0.99);
  result.p999_kl = percentile(sums.kl, 0.999);
  result.max_kl = sums.kl.back();
  result.top1_agreement = ratio(sums.agreeing, result.tokens).value_or(0);
  result.windows = total;
  result.context = options.context;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.perplexity = perplexity_of(sums.nll, plan, options.context, result.seconds);
  result.reference_perplexity = perplexity_of(sums.reference_nll, plan, options.context, result.seconds);
  result.protocol = fmt::format(
      "KL(reference || model) in nats of the next-id distributions at all {} positions of consecutive "
      "windows of {} ids of the "
      "whole text, no special tokens, each alone, the rest dropped{}",
      options.context, options.context,
      options.limit > 0 ? fmt::format(", only the first {} windows", total) : "");
  return result;
}

}  // namespace lowbit
