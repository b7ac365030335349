#include "runtime/sampler.h"

#include "base/fail.h"
#include "ops/softmax.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

namespace lowbit {

bool is_greedy(const GenerateOptions& options) {
  return (options.temperature == 0 || options.top_k == 1) && options.repetition_penalty == 1;
}

int32_t checked_token(int32_t best) {
  if (best < 0)
    fail(ErrorCode::kInternal, "the model's logits are not finite: its weights or an activation overflowed");
  return best;
}

Sampler::Sampler(const GenerateOptions& options, uint64_t stream)
    : options_(options), state_(options.seed * 0x9e3779b97f4a7c15u + stream * 0xd1342543de82ef95u + 1) {}

// SplitMix64, Steele et al. 2014.
double Sampler::uniform() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int32_t Sampler::sample(std::span<float> logits, std::span<const int32_t> previous) {
  if (options_.repetition_penalty != 1) {
    for (int32_t id : std::unordered_set<int32_t>(previous.begin(), previous.end())) {
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
  }
  int32_t best = -1;
  finite_argmax({}, logits.data(), 1, static_cast<int64_t>(logits.size()), &best);
  checked_token(best);
  if (options_.temperature == 0 || options_.top_k == 1) return best;

  // Tokens more than 60 / ln(e) below the best have a weight under 1e-26: they cannot be drawn.
  const float most = logits[static_cast<size_t>(best)], reach = 60 * options_.temperature;
  candidates_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= most - reach) candidates_.push_back(static_cast<int32_t>(id));
  }
  auto likelier = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  if (options_.top_k > 0 && static_cast<int64_t>(candidates_.size()) > options_.top_k) {
    candidates_.resize(static_cast<size_t>(options_.top_k));
  }
  weights_.clear();
  double sum = 0;
  for (int32_t id : candidates_) {
    weights_.push_back(
        std::exp(static_cast<double>(logits[static_cast<size_t>(id)] - most) / options_.temperature));
    sum += weights_.back();
  }
  if (options_.top_p < 1) {
    double kept = 0;
    size_t count = 0;
    while (count < weights_.size() && kept < sum * options_.top_p) kept += weights_[count++];
    weights_.resize(count);
    sum = kept;
  }
  double point = uniform() * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    point -= weights_[i];
    if (point < 0) return candidates_[i];
  }
  return candidates_[weights_.size() - 1];
}

}  // namespace lowbit
