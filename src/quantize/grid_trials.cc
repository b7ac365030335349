#include "quantize/grid_trials.h"

#include "ops/encode.h"
#include "ops/softmax.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

namespace lowbit {
namespace {

// Enough to tell proposals apart; each costs about as long as observing so many tokens.
constexpr int64_t kTokens = 2048, kSampleTokens = 512;

// Spread over the data, cut: kTokens or more where there are as many, less than twice that.
std::vector<std::vector<int32_t>> trial_samples(const std::vector<std::vector<int32_t>>& samples) {
  const auto cut = [](const std::vector<int32_t>& ids) {
    return std::min(kSampleTokens, static_cast<int64_t>(ids.size()));
  };
  int64_t tokens = 0;
  for (const std::vector<int32_t>& ids : samples) tokens += cut(ids);
  const auto step = static_cast<size_t>(std::max<int64_t>(1, tokens / kTokens));
  std::vector<std::vector<int32_t>> result;
  for (size_t i = 0; i < samples.size(); i += step)
    result.emplace_back(samples[i].begin(), samples[i].begin() + cut(samples[i]));
  return result;
}

class GridTrials {
 public:
  GridTrials(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
             const GridProposals& proposals, const std::vector<std::vector<int32_t>>& samples,
             MemoryMeter& meter, const Log& log)
      : model_(source.model),
        ops_(ops),
        settings_(settings),
        proposals_(proposals),
        samples_(trial_samples(samples)),
        meter_(meter),
        log_(log) {}

  StageChoice best() {
    std::vector<StageChoice> choices(proposals_.rules.size());
    for (int64_t layer = 0; layer < model_.layer_count(); ++layer) {
      for (const Stage& stage : model_.block(layer).stages()) {
        for (size_t i = 0; i < choices.size(); ++i) choices[i].emplace(stage.name, i);
      }
    }
    take_best(choices);
    const StageChoice first = best_;
    for (const auto& [name, taken] : first) {
      choices.clear();
      for (size_t i = 0; i < proposals_.rules.size(); ++i) {
        if (i == taken || proposals_.rules[i].is_symmetric != proposals_.rules[taken].is_symmetric) continue;
        choices.push_back(best_);
        choices.back()[name] = i;
      }
      take_best(choices);
    }
    return best_;
  }

 private:
  // Of these and the best so far; of equal ones the first.
  void take_best(const std::vector<StageChoice>& choices) {
    if (choices.empty()) return;
    const std::vector<double> costs = costs_of(choices);
    for (size_t i = 0; i < choices.size(); ++i) {
      log_.info(fmt::format("observer auto: {}: {} {:.4f}", text_of(choices[i]),
                            model_.has_head() ? "mean KL" : "relative error", costs[i]));
      if (best_.empty() || costs[i] < least_) {
        least_ = costs[i];
        best_ = choices[i];
      }
    }
  }

  std::string text_of(const StageChoice& choice) const {
    std::string text;
    bool is_symmetric = true;
    for (const auto& [name, proposal] : choice) {
      const ObserverRule& rule = proposals_.rules[proposal];
      text += fmt::format("{} {}, ", name, observer_name(rule.observer));
      is_symmetric = rule.is_symmetric;
    }
    return text + (is_symmetric ? "symmetric" : "with zero points");
  }

  std::vector<double> costs_of(const std::vector<StageChoice>& choices) {
    std::deque<CalibrationStates> states;  // of each choice, and of the dense model when first asked
    const bool is_first = expected_.empty();
    for (size_t i = 0; i < choices.size() + (is_first ? 1 : 0); ++i)
      states.emplace_back(model_, ops_, samples_, CalibrationStates::Options{}, meter_);
    for (int64_t layer = 0; layer < model_.layer_count(); ++layer) {
      Block& block = model_.block(layer);
      std::vector<Weight> before;
      for (Linear& linear : block.linears()) before.push_back(linear.weight);
      for (size_t i = 0; i < before.size(); ++i) {
        if (settings_of(layer, i).is_quantized)
          block.linears()[i].weight = proposals_.values(block.linears()[i]);
      }
      if (is_first) states.back().advance_all(block);
      round_weights(layer, block);
      for (size_t i = 0; i < choices.size(); ++i) {
        set_grids(layer, block, choices[i]);
        states[i].advance_all(block);
      }
      for (size_t i = 0; i < before.size(); ++i) block.linears()[i].weight = before[i];
      meter_.sample();
    }
    if (is_first) {
      expected_ = states.back().hidden_states();
      states.pop_back();
    }
    const std::vector<double> costs = costs_of(states);
    ops_.workspace->release();
    return costs;
  }

  const ModuleSettings& settings_of(int64_t layer, size_t linear) const {
    return settings_.layers[static_cast<size_t>(layer)][linear];
  }

  void round_weights(int64_t layer, Block& block) {
    for (size_t i = 0; i < block.linears().size(); ++i) {
      Weight& weight = block.linears()[i].weight;
      if (!settings_of(layer, i).is_quantized) continue;
      const Tensor& values = std::get<Tensor>(weight);
      const Int8Rows rows = encode_int8_rows(ops_, values, values.dtype());
      weight = from_int8_rows(rows.codes.data<int8_t>(), rows.scales, values.size(1));
    }
  }

  void set_grids(int64_t layer, Block& block, const StageChoice& choice) {
    for (const Stage& stage : block.stages()) {
      for (const int index : stage.linears) {
        const auto at = static_cast<size_t>(index);
        Linear& linear = block.linears()[at];
        if (settings_of(layer, at).is_quantized && settings_of(layer, at).rounds_inputs)
          set_static_inputs(std::get<QuantizedTensor>(linear.weight),
                            proposals_.grid(linear.module, choice.find(stage.name)->second));
      }
    }
  }

  // Means over the rows whose answers count: of models with classes each sample's first.
  std::vector<double> costs_of(const std::deque<CalibrationStates>& states) const {
    std::vector<double> sums(states.size());
    const bool is_of_classes = model_.config().head_kind == HeadKind::kClasses;
    int64_t row = 0, counted = 0;
    for (const std::vector<int32_t>& ids : samples_) {
      const auto tokens = static_cast<int64_t>(ids.size()), rows = is_of_classes ? 1 : tokens;
      if (model_.has_head()) {
        add_divergences(states, row, rows, sums);
      } else {
        for (size_t i = 0; i < sums.size(); ++i)
          sums[i] += add_row_errors(0, row_of(expected_, row), row_of(states[i].hidden_states(), row), rows,
                                    model_.config().hidden_size);
      }
      row += tokens;
      counted += rows;
    }
    for (double& sum : sums) {
      sum /= static_cast<double>(counted);
      if (!std::isfinite(sum)) sum = std::numeric_limits<double>::infinity();
    }
    return sums;
  }

  const float* row_of(const Tensor& hidden, int64_t row) const {
    return hidden.data<float>() + row * model_.config().hidden_size;
  }

  void add_divergences(const std::deque<CalibrationStates>& states, int64_t first, int64_t count,
                       std::vector<double>& sums) const {
    const int64_t vocab = model_.head_outputs();
    const int64_t step = std::clamp<int64_t>((int64_t{8} << 20) / vocab, 1, 256);
    for (int64_t row = first; row < first + count; row += step) {
      const int64_t rows = std::min(step, first + count - row);
      const Scratch scratch = ops_.workspace->take(static_cast<size_t>(2 * rows * vocab) * sizeof(float));
      float *const reference = scratch.as<float>(), *const logits = reference + rows * vocab;
      model_.logits(ops_, row_of(expected_, row), rows, MatmulMode::kPrefill, reference);
      for (size_t i = 0; i < sums.size(); ++i) {
        model_.logits(ops_, row_of(states[i].hidden_states(), row), rows, MatmulMode::kPrefill, logits);
        std::vector<double> kl(static_cast<size_t>(rows));
        divergence(ops_, reference, logits, rows, vocab, kl.data());
        for (const double nats : kl) sums[i] += nats;
      }
    }
  }

  Model& model_;
  const OpContext& ops_;
  const QuantizationSettings& settings_;
  const GridProposals& proposals_;
  const std::vector<std::vector<int32_t>> samples_;
  MemoryMeter& meter_;
  const Log& log_;
  Tensor expected_;  // F32 [tokens, hidden_size], of the dense model
  StageChoice best_;
  double least_ = std::numeric_limits<double>::infinity();
};

}  // namespace

double add_row_errors(double sum, const float* expected, const float* found, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, expected += width, found += width) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < width; ++i) {
      error += std::pow(double{found[i]} - expected[i], 2);
      size += std::pow(double{expected[i]}, 2);
    }
    sum += size > 0 ? error / size : 0;
  }
  return sum;
}

StageChoice choose_grids(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                         const GridProposals& proposals, const std::vector<std::vector<int32_t>>& samples,
                         MemoryMeter& meter, const Log& log) {
  return GridTrials(source, ops, settings, proposals, samples, meter, log).best();
}

}  // namespace lowbit
