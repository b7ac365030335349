#include "eval/classification.h"

#include "base/fail.h"
#include "base/files.h"
#include "eval/answer.h"
#include "eval/confusion.h"
#include "eval/validate.h"
#include "runtime/language_model.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

namespace lowbit {
namespace {

// The example in an error message: its own id, and its place in the file.
std::string name_of(const std::string& file, const Example& example, size_t index) {
  const std::string place = std::to_string(index + 1);
  return example.id == place ? fmt::format("{}: example {}", file, place)
                             : fmt::format("{}: example {} (id {})", file, place, example.id);
}

bool truth_of(const Example& example, const std::string& label_key, const std::string& name) {
  constexpr std::string_view kExpected = "true or false (also 1, 0, yes, no, fraud, not fraud, 是, 否, ...)";
  if (example.label_json) {
    if (const auto label = label_of(parse_json(*example.label_json, name))) return *label;
    fail(ErrorCode::kInvalidArgument, "{}: \"{}\" is {}, expected {}", name, label_key,
         example.label_json->substr(0, 200), kExpected);
  }
  if (example.messages.back().role != "assistant") {
    fail(ErrorCode::kInvalidArgument,
         "{}: no label: neither a key \"{}\" beside the messages nor an assistant turn at the end; name the "
         "key with --label-key",
         name, label_key);
  }
  const std::string& answer = example.messages.back().content;
  if (const auto label = parse_answer(answer, label_key)) return *label;
  fail(ErrorCode::kInvalidArgument, "{}: the assistant's answer {} holds no label \"{}\", expected {}", name,
       Json(answer.substr(0, 200)).dump(), label_key, kExpected);
}

// Token ids of every prompt, checked against the context before anything runs.
std::vector<std::vector<int32_t>> encode_prompts(const LanguageModel& model,
                                                 const std::vector<Question>& questions,
                                                 const ClassifyOptions& options, const Log& log) {
  const Tokenizer& tokenizer = model.tokenizer();
  const ChatTemplate& chat_template = model.chat_template();
  const int64_t context = model.context_length();
  std::vector<std::vector<int32_t>> prompts(questions.size());
  model.state().threads->parallel_for(
      static_cast<int64_t>(questions.size()), 1, [&](int64_t begin, int64_t end, int) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
          prompts[i] = encode_chat(tokenizer, chat_template, questions[i].messages);
      });
  int64_t too_long = 0, short_of_room = 0;
  size_t first_too_long = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t length = static_cast<int64_t>(prompts[i].size());
    if (length >= context && too_long++ == 0) first_too_long = i;
    short_of_room += length < context && length + options.max_new_tokens > context;
  }
  if (too_long > 0) {
    fail(ErrorCode::kInvalidArgument,
         "{} of {} prompts leave no room for an answer in the model's context of {} tokens; the first is "
         "example {} with {} "
         "tokens: shorten or remove them",
         too_long, prompts.size(), context, questions[first_too_long].id, prompts[first_too_long].size());
  }
  if (short_of_room > 0) {
    log.warning(fmt::format(
        "{} of {} answers may be cut: less than {} tokens of the model's context of {} are left for them",
        short_of_room, prompts.size(), options.max_new_tokens, context));
  }
  return prompts;
}

void write_predictions(const std::filesystem::path& file, const std::vector<Question>& questions,
                       const std::vector<std::string>& answers, const ClassifyResult& result) {
  std::string lines;
  for (size_t i = 0; i < questions.size(); ++i) {
    Json line = Json::object();
    line.set("id", questions[i].id);
    line.set("truth", questions[i].truth);
    line.set("prediction", result.predictions[i] < 0 ? Json() : Json(result.predictions[i] == 1));
    line.set("answer", answers[i]);
    lines += line.dump() + "\n";
  }
  write_file_atomically(file, lines);
}

}  // namespace

std::vector<Question> read_questions(const Dataset& dataset, const ClassifyOptions& options,
                                     const std::string& file) {
  if (dataset.kind != DatasetKind::kChat) {
    fail(
        ErrorCode::kInvalidArgument,
        "{} holds text, not dialogues; classification needs JSONL with \"messages\" (or Alpaca, or ShareGPT)",
        file);
  }
  std::vector<Question> questions;
  for (size_t i = 0; i < dataset.examples.size(); ++i) {
    if (options.limit > 0 && static_cast<int64_t>(i) >= options.limit) break;
    const Example& example = dataset.examples[i];
    const std::string name = name_of(file, example, i);
    if (example.messages.empty()) fail(ErrorCode::kInvalidArgument, "{} has no messages", name);
    Question question{
        .id = example.id, .messages = example.messages, .truth = truth_of(example, options.label_key, name)};
    if (question.messages.back().role == "assistant") question.messages.pop_back();
    if (question.messages.empty()) {
      fail(ErrorCode::kInvalidArgument, "{} has nothing before the assistant's turn: there is no question",
           name);
    }
    questions.push_back(std::move(question));
  }
  if (questions.empty()) fail(ErrorCode::kInvalidArgument, "{} has no examples", file);
  return questions;
}

int64_t count_seen_in_calibration(const std::filesystem::path& model,
                                  const std::vector<Question>& questions) {
  const std::filesystem::path report = model / "quantize_report.json";
  if (!std::filesystem::exists(report)) return 0;
  const Json json = parse_json(read_file(report), report.string());
  const Json* calibration = json.find("calibration");
  const Json* hashes =
      calibration && calibration->is_object() ? calibration->find("dialogue_hashes") : nullptr;
  std::set<std::string> seen;
  for (const Json& hash : hashes && hashes->is_array() ? hashes->as_array() : Json::Array()) {
    if (hash.is_string()) seen.insert(hash.as_string());
  }
  return std::count_if(questions.begin(), questions.end(), [&](const Question& question) {
    return seen.count(dialogue_hash(question.messages)) > 0;
  });
}

std::vector<std::vector<size_t>> length_sorted_batches(const std::vector<size_t>& lengths,
                                                       int64_t batch_size) {
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<size_t>> batches;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i % static_cast<size_t>(batch_size) == 0) batches.emplace_back();
    batches.back().push_back(order[i]);
  }
  return batches;
}

ClassifyResult classify(const LanguageModel& model, const std::filesystem::path& data,
                        const ClassifyOptions& options, const Log& log) {
  validate(options);
  require_text_generation(model.state());
  if (options.truncate || options.max_length > 0) {
    fail(ErrorCode::kInvalidArgument,
         "max_length and truncate are for encoders; {} writes its answers: leave them out",
         model.state().folder.string());
  }
  const Dataset dataset = load_dataset(data, {.label_key = options.label_key});
  for (const std::string& warning : dataset.warnings) log.warning(data.string() + ": " + warning);
  const std::vector<Question> questions = read_questions(dataset, options, data.string());
  const int64_t seen = count_seen_in_calibration(model.state().folder, questions);
  if (seen > 0) {
    log.warning(fmt::format(
        "{} of the {} dialogues of {} calibrated {}: its figures may be too good; evaluate on others", seen,
        questions.size(), data.string(), model.state().folder.string()));
  }
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::vector<int32_t>> prompts = encode_prompts(model, questions, options, log);

  std::vector<size_t> lengths;
  for (const auto& prompt : prompts) lengths.push_back(prompt.size());
  const GenerateOptions greedy{.max_new_tokens = options.max_new_tokens};
  const int64_t total = static_cast<int64_t>(questions.size());
  std::vector<std::string> answers(questions.size());
  int64_t done = 0;
  log.report({.phase = "classify", .done = 0, .total = total});
  for (const std::vector<size_t>& indices : length_sorted_batches(lengths, options.batch_size)) {
    std::vector<std::vector<int32_t>> batch;
    for (size_t index : indices) batch.push_back(prompts[index]);
    const std::vector<GenerateResult> results = model.generate(batch, greedy);
    for (size_t i = 0; i < indices.size(); ++i) answers[indices[i]] = results[i].text;
    done += static_cast<int64_t>(indices.size());
    log.report({.phase = "classify", .done = done, .total = total});
  }

  ClassifyResult result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < questions.size(); ++i) {
    const std::optional<bool> label = parse_answer(answers[i], options.label_key);
    result.labels.push_back(questions[i].truth ? 1 : 0);
    result.predictions.push_back(label ? (*label ? 1 : 0) : -1);
  }
  score(result, options.unparsable);
  result.memory = model.memory();
  result.samples_per_second = result.seconds > 0 ? static_cast<double>(total) / result.seconds : 0;
  result.protocol = fmt::format(
      "one chat prompt per dialogue (the model's own template, the last assistant turn left out), greedy "
      "answers of at most {} "
      "tokens, label \"{}\" from JSON or a bare label; unparsable answers {}; 95 % Wilson intervals",
      options.max_new_tokens, options.label_key,
      options.unparsable == "negative" ? "count as negative"
                                       : "count on their own and as missed when the truth is positive");
  if (options.limit > 0) result.protocol += fmt::format("; only the first {} examples", total);
  if (seen > 0) result.protocol += fmt::format("; {} of the dialogues calibrated the model", seen);
  if (!options.predictions.empty()) write_predictions(options.predictions, questions, answers, result);
  return result;
}

}  // namespace lowbit
