// An encoder's classification head on the user's own examples.
#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "eval/confusion.h"
#include "eval/statistics.h"
#include "eval/validate.h"
#include "lowbit/dataset.h"
#include "runtime/encoder_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lowbit {
namespace {

int label_of(const Json& value, const std::vector<std::string>& labels, const std::string& where) {
  const auto count = static_cast<int64_t>(labels.size());
  if (value.is_string()) {
    const auto found = std::find(labels.begin(), labels.end(), value.as_string());
    if (found != labels.end()) return static_cast<int>(found - labels.begin());
  } else if (value.is_integer() && value.as_integer() >= 0 && value.as_integer() < count) {
    return static_cast<int>(value.as_integer());
  } else if (value.is_bool() && count == 2) {
    return value.as_bool() ? 1 : 0;
  }
  std::string known;
  for (size_t i = 0; i < std::min<size_t>(labels.size(), 20); ++i)
    known += fmt::format("{}\"{}\"", i > 0 ? ", " : "", labels[i]);
  fail(ErrorCode::kInvalidArgument,
       "{}: the label is {}, expected one of the model's: {}{}, or an index from 0 to {}", where,
       value.dump().substr(0, 200), known, labels.size() > 20 ? ", ..." : "", count - 1);
}

void check_options(const LanguageModel& model, const ClassifyOptions& options) {
  validate(options);
  if (model.task() != "text-classification") {
    fail(ErrorCode::kInvalidArgument, "{} has no classification head: it is for {}",
         model.state().folder.string(), model.task());
  }
  const ClassifyOptions usual;
  if (options.unparsable != usual.unparsable || options.max_new_tokens != usual.max_new_tokens) {
    fail(ErrorCode::kInvalidArgument,
         "unparsable and max_new_tokens are for models that write their answers; {} has a classification "
         "head: "
         "leave them out",
         model.state().folder.string());
  }
}

struct Examples {
  Dataset dataset;
  std::vector<EncoderText> texts;  // of the dataset
  std::vector<int> truths;
};

Examples read_examples(const std::filesystem::path& data, const std::vector<std::string>& labels,
                       const ClassifyOptions& options, const Log& log) {
  Examples result{load_dataset(data, {.label_key = options.label_key}), {}, {}};
  for (const std::string& warning : result.dataset.warnings) log.warning(data.string() + ": " + warning);
  if (result.dataset.kind != DatasetKind::kText) {
    fail(
        ErrorCode::kInvalidArgument,
        "{} holds no single texts; a classification head reads JSONL with \"text\" (and \"text_pair\") and a "
        "label",
        data.string());
  }
  for (const Example& example : result.dataset.examples) {
    if (options.limit > 0 && static_cast<int64_t>(result.texts.size()) >= options.limit) break;
    const std::string where = fmt::format("{}: example {}", data.string(), example.id);
    if (!example.label_json) {
      fail(ErrorCode::kInvalidArgument, "{}: there is no \"{}\"; name the key of the label with --label-key",
           where, options.label_key);
    }
    result.truths.push_back(label_of(parse_json(*example.label_json, where), labels, where));
    result.texts.push_back({example.text});
    if (example.text_pair) result.texts.back().second = *example.text_pair;
  }
  return result;
}

void softmax(std::vector<float>& values) {
  const float most = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (float& value : values) sum += double{value = std::exp(value - most)};
  for (float& value : values) value = static_cast<float>(double{value} / sum);
}

// Each label against all others.
void score_labels(const std::vector<std::string>& names, SequenceClassifyResult& result) {
  const size_t count = names.size();
  result.confusion.assign(count, std::vector<int64_t>(count, 0));
  int64_t right = 0;
  for (size_t i = 0; i < result.truths.size(); ++i) {
    ++result.confusion[static_cast<size_t>(result.truths[i])][static_cast<size_t>(result.predictions[i])];
    right += result.truths[i] == result.predictions[i];
  }
  result.accuracy = wilson_interval(right, result.samples);
  RunningMean f1;
  for (size_t label = 0; label < count; ++label) {
    ClassifyResult one;
    for (size_t i = 0; i < result.truths.size(); ++i) {
      one.labels.push_back(result.truths[i] == static_cast<int>(label));
      one.predictions.push_back(result.predictions[i] == static_cast<int>(label));
    }
    score(one, "count");
    result.labels.push_back(
        {names[label], one.true_positive + one.false_negative, one.precision, one.recall, one.f1});
    if (one.f1) f1.add(*one.f1);
  }
  if (f1.count() > 0) result.macro_f1 = f1.mean();
}

void write_predictions(const std::filesystem::path& file, const Examples& examples,
                       const SequenceClassifyResult& result) {
  std::string lines;
  for (size_t i = 0; i < result.truths.size(); ++i) {
    const auto truth = static_cast<size_t>(result.truths[i]),
               prediction = static_cast<size_t>(result.predictions[i]);
    Json line = Json::object();
    line.set("id", examples.dataset.examples[i].id);
    line.set("truth", result.labels[truth].label);
    line.set("prediction", result.labels[prediction].label);
    line.set("probability", double{result.probabilities[i][prediction]});
    lines += line.dump() + "\n";
  }
  write_file_atomically(file, lines);
}

}  // namespace

SequenceClassifyResult classify_sequences(const LanguageModel& model, const std::filesystem::path& data,
                                          const ClassifyOptions& options, const Log& log) {
  check_options(model, options);
  const LanguageModel::State& state = model.state();
  const std::vector<std::string>& labels = state.model.config().labels;
  const Examples examples = read_examples(data, labels, options, log);
  const auto start = std::chrono::steady_clock::now();
  const EncoderInputs inputs =
      encode_inputs(state, model.tokenizer(), examples.texts, {options.max_length, options.truncate});
  SequenceClassifyResult result;
  result.samples = static_cast<int64_t>(examples.texts.size());
  result.tokens = inputs.tokens;
  result.truncated = inputs.truncated;
  result.truths = examples.truths;
  result.predictions.resize(examples.texts.size());
  result.probabilities.assign(examples.texts.size(), std::vector<float>(labels.size()));
  run_encoder(state, inputs.inputs, options.batch_size, "classify", log, [&](size_t i, const float* hidden) {
    std::vector<float>& row = result.probabilities[i];
    const OpContext ops = state.ops();
    Tensor logits = allocate(ops, DType::kF32, {static_cast<int64_t>(labels.size())});
    state.model.logits(ops, hidden, 1, MatmulMode::kDecode, logits.mutable_data<float>());
    copy_here(ops, row.data(), logits.bytes(), logits.byte_count());
    for (float value : row) {
      if (!std::isfinite(value))
        fail(ErrorCode::kCorruptFile, "example {} has logits that are not finite: the model is damaged",
             examples.dataset.examples[i].id);
    }
    result.predictions[i] = static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin());
    softmax(row);
  });
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.samples_per_second = result.seconds > 0 ? static_cast<double>(result.samples) / result.seconds : 0;
  score_labels(labels, result);
  result.memory = model.memory();
  result.protocol = fmt::format(
      "the most likely of the {} labels of the model's classification head for each text of at most {} "
      "tokens, "
      "truth from \"{}\"; 95 % Wilson intervals",
      labels.size(), options.max_length > 0 ? options.max_length : model.context_length(), options.label_key);
  if (options.limit > 0) result.protocol += fmt::format("; only the first {} examples", result.samples);
  if (!options.predictions.empty()) write_predictions(options.predictions, examples, result);
  return result;
}

}  // namespace lowbit
