#include "quantize/static_inputs.h"

#include "base/fail.h"
#include "ops/encode.h"
#include "ops/parallel.h"
#include "quantize/grid_trials.h"
#include "quantize/observers.h"
#include "quantize/smooth.h"

#include <cmath>

namespace lowbit {
namespace {

// What a grid does to values, summed in pieces of a fixed size: in floats over few, side by side, so that the
// compiler takes several at once, then in doubles.
struct Distortion {
  double error = 0, size = 0;  // sums of squares, of steps
  int64_t clipped = 0, values = 0;

  // count: kFew at most.
  static constexpr int64_t kFew = 512, kLanes = 16;
  void add_few(const InputGrid& grid, const float* x, int64_t count) {
    constexpr CodeRange kCodes;
    const float inverse = 1 / grid.scale, least = static_cast<float>(kCodes.least - grid.zero_point),
                most = static_cast<float>(kCodes.most - grid.zero_point);
    float errors[kLanes] = {}, sizes[kLanes] = {};
    int32_t outside[kLanes] = {};
    const auto add_lanes = [&](const float* from) {
      for (int64_t i = 0; i < kLanes; ++i) {
        // Codes of encode_input, less the zero point: adding 1.5 * 2^23 rounds to nearest even.
        const float position = from[i] * inverse, level = (position + 12582912.0f) - 12582912.0f;
        const float raised = level < least ? least : level, kept = raised > most ? most : raised;
        const float distance = position - kept;
        outside[i] += kept != level ? 1 : 0;
        errors[i] += distance * distance;
        sizes[i] += position * position;
      }
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) add_lanes(x + i);
    if (i < count) {
      float rest[kLanes] = {};  // what zeros add is nothing
      std::copy(x + i, x + count, rest);
      add_lanes(rest);
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      error += double{errors[lane]};
      size += double{sizes[lane]};
      clipped += outside[lane];
    }
  }

  void add(const ThreadPool& threads, const InputGrid& grid, const float* x, int64_t count) {
    constexpr int64_t kChunk = 1 << 15;
    std::vector<Distortion> chunks(static_cast<size_t>((count + kChunk - 1) / kChunk));
    threads.parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t last = std::min(count, (chunk + 1) * kChunk);
        for (int64_t i = chunk * kChunk; i < last; i += kFew)
          chunks[static_cast<size_t>(chunk)].add_few(grid, x + i, std::min(kFew, last - i));
      }
    });
    for (const Distortion& chunk : chunks) {
      error += chunk.error;
      size += chunk.size;
      clipped += chunk.clipped;
    }
    values += count;
  }

  InputReport report(const InputGrid& grid, const ObserverRule& rule) const {
    return {grid.scale,
            grid.zero_point,
            static_cast<double>(clipped) / static_cast<double>(values),
            size > 0 ? std::sqrt(error / size) : 0,
            std::string(observer_name(rule.observer)),
            rule.is_symmetric};
  }
};

// One, or those that `auto` chooses from: both are best for some layers of some model (docs/quality.md).
std::vector<ObserverRule> proposed_rules(const InputOptions& options) {
  if (options.observer != kAutoObserver) {
    return {{*find_observer(options.observer), options.observer_percentile,
             options.activations_sym.value_or(true)}};
  }
  std::vector<ObserverRule> rules;
  for (const Observer observer : {Observer::kMoving, Observer::kMse}) {
    for (const bool is_symmetric : {true, false}) {
      if (options.activations_sym.value_or(is_symmetric) == is_symmetric)
        rules.push_back({.observer = observer, .is_symmetric = is_symmetric});
    }
  }
  return rules;
}

class InputObserver {
 public:
  InputObserver(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                const QuantizeOptions& options, const std::vector<std::vector<int32_t>>& samples,
                MemoryMeter& meter, const Log& log)
      : source_(source),
        ops_(ops),
        settings_(settings),
        is_static_(options.activations == "int8-static"),
        rules_(proposed_rules(options.inputs)),
        samples_(samples),
        meter_(meter),
        log_(log) {
    states_.emplace(source.model, ops, samples,
                    CalibrationStates::Options{.batch_size = options.calibration.batch_size}, meter);
    if (!options.inputs.smooth_alpha.empty()) alpha_ = parse_smooth_alpha(options.inputs.smooth_alpha);
  }

  ObservedInputs run() {
    Model& model = source_.model;
    if (alpha_) count_smoothed(model);
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      Block& block = model.block(layer);
      for (size_t stage = 0; stage < block.stages().size(); ++stage)
        visit_stage(layer, block, static_cast<int>(stage));
      log_.report({"observe", layer + 1, model.layer_count(), ""});
    }
    states_.reset();  // the largest thing in memory
    if (is_static_) take_grids(model);
    return std::move(result_);
  }

 private:
  // Says so before anything is observed where there are none.
  void count_smoothed(Model& model) {
    int64_t smoothed = 0, others = 0;
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      Block& block = model.block(layer);
      for (size_t i = 0; i < block.stages().size(); ++i) {
        const int stage = static_cast<int>(i);
        if (!rounded_linears(layer, block, stage).empty())
          ++(can_smooth(layer, block, stage) ? smoothed : others);
      }
    }
    if (smoothed == 0) {
      fail(ErrorCode::kInvalidArgument,
           "smooth_alpha: no quantized linears of this model have a norm or a gated product of their own "
           "before them, into which factors could be folded: leave it out");
    }
    log_.info(
        fmt::format("smooth_alpha: {} groups of linears behind a norm or a gated product; {} others are "
                    "left as they are",
                    smoothed, others));
  }

  // The linears of a stage whose inputs are rounded.
  std::vector<Linear*> rounded_linears(int64_t layer, Block& block, int stage) const {
    std::vector<Linear*> linears;
    for (const int index : block.stages()[static_cast<size_t>(stage)].linears) {
      const ModuleSettings& settings =
          settings_.layers[static_cast<size_t>(layer)][static_cast<size_t>(index)];
      if (settings.is_quantized && settings.rounds_inputs)
        linears.push_back(&block.linears()[static_cast<size_t>(index)]);
    }
    return linears;
  }

  void visit_stage(int64_t layer, Block& block, int stage) {
    const std::vector<Linear*> linears = rounded_linears(layer, block, stage);
    std::vector<Tensor> before;  // of all linears of the stage
    const std::vector<int>& all = block.stages()[static_cast<size_t>(stage)].linears;
    for (const int index : all)
      before.push_back(std::get<Tensor>(block.linears()[static_cast<size_t>(index)].weight));
    // What the stage's input is to be divided by, where a norm does not do it already.
    std::vector<float> divisors;
    if (!linears.empty() && alpha_) divisors = smooth(layer, block, stage, before);
    if (!linears.empty() && is_static_) propose_grids(block, stage, linears, divisors);
    states_->advance(block, stage);
    for (size_t i = 0; i < all.size(); ++i) block.linears()[static_cast<size_t>(all[i])].weight = before[i];
  }

  [[noreturn]] void refuse(const std::string& module, int64_t sample) const {
    fail(
        ErrorCode::kInvalidArgument,
        "{}: its input in calibration sample {} has values that are not finite (or beyond 1e30); nothing was "
        "written. Leave the module's inputs as they are with --dynamic \"{}=activations:none\", or look for "
        "what is wrong with the model",
        module, sample, module);
  }

  // The samples' rows, divided column by column.
  void visit(const Block& block, int stage, const std::vector<float>& divisors,
             const CalibrationStates::VisitSample& body) {
    if (divisors.empty()) return states_->visit_input(block, stage, body);
    std::vector<float> divided;
    states_->visit_input(block, stage, [&](const float* rows, int64_t tokens) {
      divided.assign(rows, rows + tokens * static_cast<int64_t>(divisors.size()));
      divide_columns(divisors, divided);
      body(divided.data(), tokens);
    });
  }

  static void divide_columns(std::span<const float> divisors, std::vector<float>& rows) {
    for (size_t row = 0; row < rows.size(); row += divisors.size()) {
      for (size_t j = 0; j < divisors.size(); ++j) rows[row + j] /= divisors[j];
    }
  }

  void propose_grids(const Block& block, int stage, const std::vector<Linear*>& linears,
                     const std::vector<float>& divisors) {
    const int64_t width = block.stages()[static_cast<size_t>(stage)].input_width;
    std::vector<Observation> seen(rules_.size());
    int64_t sample = 0;
    visit(block, stage, divisors, [&](const float* rows, int64_t tokens) {
      for (size_t i = 0; i < rules_.size(); ++i) {
        if (!observe(*ops_.threads, rules_[i], rows, tokens * width, seen[i]))
          refuse(linears[0]->module, sample);
      }
      ++sample;
    });
    std::vector<InputGrid> grids;
    for (size_t i = 0; i < rules_.size(); ++i) grids.push_back(choose_grid(rules_[i], seen[i]));
    // Nearly always all weights have one type.
    std::map<DType, std::vector<InputReport>> reports;
    for (Linear* linear : linears) {
      const DType dtype = source_dtype(linear->module);
      if (!reports.contains(dtype)) {
        std::vector<InputGrid> kept;
        for (const InputGrid& grid : grids) kept.push_back(rounded(grid, dtype, linear->module));
        reports[dtype] = measured(block, stage, divisors, kept);
      }
      proposals_[linear->module] = reports[dtype];
    }
  }

  std::vector<InputReport> measured(const Block& block, int stage, const std::vector<float>& divisors,
                                    const std::vector<InputGrid>& grids) {
    const int64_t width = block.stages()[static_cast<size_t>(stage)].input_width;
    std::vector<Distortion> distortions(grids.size());
    visit(block, stage, divisors, [&](const float* rows, int64_t tokens) {
      for (size_t i = 0; i < grids.size(); ++i)
        distortions[i].add(*ops_.threads, grids[i], rows, tokens * width);
    });
    std::vector<InputReport> reports;
    for (size_t i = 0; i < grids.size(); ++i) reports.push_back(distortions[i].report(grids[i], rules_[i]));
    return reports;
  }

  // Of what is proposed.
  void take_grids(Model& model) {
    StageChoice choice;
    if (rules_.size() > 1) {
      const GridProposals proposals{rules_,
                                    [&](const Linear& linear) {
                                      return smoothed_weight(ops_, std::get<Tensor>(linear.weight),
                                                             result_.modules[linear.module]);
                                    },
                                    [&](const std::string& module, size_t rule) {
                                      const InputReport& report = proposals_.at(module)[rule];
                                      return InputGrid{report.scale, report.zero_point};
                                    }};
      choice = choose_grids(source_, ops_, settings_, proposals, samples_, meter_, log_);
    }
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      Block& block = model.block(layer);
      for (size_t stage = 0; stage < block.stages().size(); ++stage) {
        for (const Linear* linear : rounded_linears(layer, block, static_cast<int>(stage)))
          result_.modules[linear->module].report =
              proposals_.at(linear->module)[choice[std::string(block.stages()[stage].name)]];
      }
    }
  }

  DType source_dtype(const std::string& module) const {
    return source_.checkpoint.files.tensors.at(module + ".weight").dtype();
  }

  // As the file will have it.
  static InputGrid rounded(InputGrid grid, DType dtype, const std::string& module) {
    Tensor scale = Tensor::allocate(DType::kF32, {1});
    scale.mutable_data<float>()[0] = grid.scale;
    grid.scale = float_at(converted(scale, dtype), 0);
    if (grid.scale > 0 && std::isfinite(grid.scale)) return grid;
    fail(ErrorCode::kUnsupported, "{}: the scale of its inputs is {}, which {} does not hold", module,
         scale.data<float>()[0], dtype_name(dtype));
  }

  // --- SmoothQuant

  // Of the calibration data: largest magnitudes of the columns, some rows spread over them, and of each
  // sample the row that reaches farthest, since such tokens decide ranges.
  struct InputSample {
    std::vector<float> sizes, rows;
    int64_t row_count = 0;
  };
  static constexpr int64_t kSampleRows = 256;

  InputSample sample_of(const Block& block, int stage, const std::string& module) {
    const int64_t width = block.stages()[static_cast<size_t>(stage)].input_width;
    const int64_t step = (states_->tokens() + kSampleRows - 1) / kSampleRows;
    InputSample result;
    result.sizes.resize(static_cast<size_t>(width));
    int64_t row = 0, sample = 0;
    const auto keep = [&](const float* values) {
      result.rows.insert(result.rows.end(), values, values + width);
      ++result.row_count;
    };
    states_->visit_input(block, stage, [&](const float* rows, int64_t tokens) {
      const float* farthest = rows;
      float most = 0;
      for (int64_t token = 0; token < tokens; ++token, ++row, rows += width) {
        float largest = 0;
        bool is_finite = true;
        for (int64_t j = 0; j < width; ++j) {
          const float magnitude = std::abs(rows[j]);
          float& size = result.sizes[static_cast<size_t>(j)];
          size = std::max(size, magnitude);
          largest = std::max(largest, magnitude);
          is_finite = is_finite && std::isfinite(rows[j]);
        }
        if (!is_finite) refuse(module, sample);
        if (row % step == 0) keep(rows);
        if (largest > most) {
          most = largest;
          farthest = rows;
        }
      }
      keep(farthest);
      ++sample;
    });
    return result;
  }

  // Factors of a matrix that stays dense would be rounded with it.
  bool stays_dense(int64_t layer, const std::vector<int>& linears) const {
    return std::any_of(linears.begin(), linears.end(), [&](int index) {
      return !settings_.layers[static_cast<size_t>(layer)][static_cast<size_t>(index)].is_quantized;
    });
  }

  // Of a gated MLP the rows that the columns of down's input are proportional to: those of up. None where the
  // stage reads something else, or up stays dense.
  struct Rows {
    const Linear* linear;
    int64_t first;
  };
  std::optional<Rows> proportional_rows(int64_t layer, const Block& block, int stage) const {
    const std::vector<Stage>& stages = block.stages();
    if (stage == 0 || stages[static_cast<size_t>(stage)].name != "down") return std::nullopt;
    const Stage& maker = stages[static_cast<size_t>(stage - 1)];
    if (maker.name != "gate_up" || stays_dense(layer, maker.linears)) return std::nullopt;
    const Linear& last = block.linears()[static_cast<size_t>(maker.linears.back())];  // up, or gate and up
    return Rows{&last, maker.linears.size() == 1 ? maker.carry_width : 0};
  }

  bool can_smooth(int64_t layer, Block& block, int stage) const {
    return (block.input_norm(stage) || proportional_rows(layer, block, stage)) &&
           !stays_dense(layer, block.stages()[static_cast<size_t>(stage)].linears);
  }

  // Divides what makes the input, or returns what else it is to be divided by.
  std::vector<float> smooth(int64_t layer, Block& block, int stage, const std::vector<Tensor>& weights) {
    if (!can_smooth(layer, block, stage)) return {};
    Norm* const norm = block.input_norm(stage);
    const std::optional<Rows> rows = proportional_rows(layer, block, stage);
    const std::vector<int>& all = block.stages()[static_cast<size_t>(stage)].linears;
    const InputSample sample = sample_of(block, stage, block.linears()[static_cast<size_t>(all[0])].module);
    const std::vector<float> sizes = column_sizes(ops_, weights);
    const std::optional<float> alpha = alpha_->value ? alpha_->value : best_alpha(sample, sizes, weights);
    if (!alpha) return {};
    std::vector<float> factors = smooth_factors(sample.sizes, sizes, *alpha);
    if (norm) {
      for (NamedTensor& tensor : fold_into(*norm, source_dtype(norm->module), factors))
        result_.tensors.emplace(tensor.name, std::move(tensor.tensor));
    } else {
      divide(*rows, factors);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      Linear& linear = block.linears()[static_cast<size_t>(all[i])];
      if (norm) linear.weight = rescaled(ops_, weights[i], factors);
      ModuleInputs& inputs = result_.modules[linear.module];
      inputs.smooth_alpha = *alpha;
      inputs.factors = factors;
    }
    return norm ? std::vector<float>() : factors;
  }

  void divide(const Rows& rows, const std::vector<float>& factors) {
    std::vector<float>& divisors = result_.modules[rows.linear->module].divisors;
    divisors.assign(static_cast<size_t>(out_features(rows.linear->weight)), 1.0f);
    std::copy(factors.begin(), factors.end(), divisors.begin() + rows.first);
    if (rows.linear->bias.empty()) return;
    const std::string name = rows.linear->module + ".bias";
    Tensor bias = Tensor::allocate(DType::kF32, rows.linear->bias.shape());
    for (size_t n = 0; n < divisors.size(); ++n)
      bias.mutable_data<float>()[n] = rows.linear->bias.data<float>()[n] / divisors[n];
    result_.tensors.emplace(name, converted(bias, source_.checkpoint.files.tensors.at(name).dtype()));
  }

  // That with the least squared error of the outputs, relative to them row by row; none where that is
  // without.
  std::optional<float> best_alpha(const InputSample& sample, std::span<const float> sizes,
                                  const std::vector<Tensor>& weights) {
    std::optional<float> best;
    double least = output_error(sample, std::vector<float>(sizes.size(), 1.0f), weights);
    for (int tenths = 0; tenths <= 10; ++tenths) {
      const float alpha = static_cast<float>(tenths) / 10;
      const double error = output_error(sample, smooth_factors(sample.sizes, sizes, alpha), weights);
      if (error < least) {
        least = error;
        best = alpha;
      }
    }
    return best;
  }

  double output_error(const InputSample& sample, std::span<const float> factors,
                      const std::vector<Tensor>& weights) {
    const auto width = static_cast<int64_t>(factors.size());
    std::vector<float> rows = sample.rows;
    divide_columns(factors, rows);
    Observation seen;
    if (!observe(*ops_.threads, rules_.back(), rows.data(), static_cast<int64_t>(rows.size()), seen))
      return std::numeric_limits<double>::infinity();
    double total = 0;
    for (const Tensor& weight : weights) {
      const int64_t out = weight.size(0);
      const Int8Rows codes = encode_int8_rows(ops_, rescaled(ops_, weight, factors), weight.dtype());
      QuantizedTensor rounded = from_int8_rows(codes.codes.data<int8_t>(), codes.scales, width);
      rounded.activations = ActivationFormat::kInt8Dynamic;
      if (is_static_) set_static_inputs(rounded, choose_grid(rules_.back(), seen));
      std::vector<float> expected(static_cast<size_t>(sample.row_count * out)), found(expected.size());
      matmul(ops_, sample.rows.data(), sample.row_count, Weight(weight), nullptr, expected.data(),
             MatmulMode::kPrefill);
      matmul(ops_, rows.data(), sample.row_count, Weight(rounded), nullptr, found.data(),
             MatmulMode::kPrefill);
      total = add_row_errors(total, expected.data(), found.data(), sample.row_count, out);
    }
    return total;
  }

  SourceModel& source_;
  const OpContext& ops_;
  const QuantizationSettings& settings_;
  const bool is_static_;
  const std::vector<ObserverRule> rules_;  // that propose grids; of smoothed inputs the last counts
  std::optional<SmoothAlpha> alpha_;
  const std::vector<std::vector<int32_t>>& samples_;
  MemoryMeter& meter_;
  std::optional<CalibrationStates> states_;
  const Log& log_;
  std::map<std::string, std::vector<InputReport>> proposals_;  // of each module, as rules_
  ObservedInputs result_;
};

}  // namespace

Tensor smoothed_weight(const OpContext& ops, const Tensor& weight, const ModuleInputs& inputs) {
  if (inputs.factors.empty() && inputs.divisors.empty()) return weight;
  return rescaled(ops, weight, inputs.factors, inputs.divisors);
}

ObservedInputs observe_inputs(SourceModel& source, const OpContext& ops, const QuantizationSettings& settings,
                              const QuantizeOptions& options,
                              const std::vector<std::vector<int32_t>>& samples, MemoryMeter& meter,
                              const Log& log) {
  if (samples.empty())
    fail(ErrorCode::kInvalidArgument, "the calibration data hold no sample: inputs cannot be observed");
  return InputObserver(source, ops, settings, options, samples, meter, log).run();
}

}  // namespace lowbit
