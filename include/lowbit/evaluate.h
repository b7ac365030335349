// What a model is worth, before and after: classification on the user's own examples, perplexity, divergence.
// Every result names its protocol.
#pragma once

#include "lowbit/embed.h"
#include "lowbit/generate.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lowbit {

struct ClassifyOptions {
  int64_t batch_size = 8;              // prompts per batch
  std::string label_key = "is_fraud";  // key of the JSON answer, and of the example's label
  std::string unparsable =
      "count";  // "count": on its own, a missed positive when the truth is positive; "negative"
  int64_t max_new_tokens = 48;        // per answer
  int64_t limit = 0;                  // > 0: only the first examples, for trying out
  std::filesystem::path predictions;  // a JSONL file with every answer, or empty
  // For encoders with a classification head, where unparsable and max_new_tokens must be left alone:
  int64_t max_length = 0;  // ids of a text, special tokens included; 0: max_position_embeddings
  bool truncate = false;   // cut longer texts; otherwise they are an error
};

struct Proportion {
  std::optional<double> value;  // none when 0/0
  double low = 0, high = 1;     // Wilson interval, 95 %
};

// unparsable "count": samples = tn + fp + fn + tp + unparsable, recall = tp / all examples whose truth is
// positive. unparsable "negative": unparsable answers are among tn and fn, `unparsable` says how many they
// are.
struct ClassifyResult {
  int64_t samples = 0, true_negative = 0, false_positive = 0, false_negative = 0, true_positive = 0,
          unparsable = 0;
  Proportion precision, recall, accuracy;
  std::optional<double> f1;
  double seconds = 0, samples_per_second = 0;
  MemoryUse memory;  // of the model
  std::string protocol;
  std::vector<int> predictions;  // per sample: 1, 0, or -1 for unparsable
  std::vector<int> labels;
};

// Dialogues, which a model that writes text answers.
ClassifyResult classify(const LanguageModel& model, const std::filesystem::path& data,
                        const ClassifyOptions& options = {}, const Log& log = {});

// One label of an encoder's head against all others.
struct LabelResult {
  std::string label;
  int64_t samples = 0;  // whose truth it is
  Proportion precision, recall;
  std::optional<double> f1;
};

struct SequenceClassifyResult {
  int64_t samples = 0, tokens = 0, truncated = 0;
  Proportion accuracy;
  std::optional<double> macro_f1;  // mean over the labels that have one
  std::vector<LabelResult> labels;
  std::vector<std::vector<int64_t>> confusion;  // [truth][prediction]
  double seconds = 0, samples_per_second = 0;
  MemoryUse memory;
  std::string protocol;
  std::vector<int> predictions, truths;           // per sample: indices into labels
  std::vector<std::vector<float>> probabilities;  // per sample, of each label
};

// Examples {"text", label} or {"text", "text_pair", label} through an encoder's classification head. A label
// is a name of id2label, an index, or with two labels true or false. kInvalidArgument: another kind of model,
// no texts, a label that the model does not have, texts too long.
SequenceClassifyResult classify_sequences(const LanguageModel& model, const std::filesystem::path& data,
                                          const ClassifyOptions& options = {}, const Log& log = {});

// Answers that changed sides between two models.
struct Flips {
  int64_t became_wrong = 0, became_right = 0;
  double p_value =
      1;  // McNemar's exact test: of a split at least this uneven if both models were equally good
};

// The same examples answered by a model and by the one it was made from. Tells a real loss from noise with
// far fewer examples than two intervals side by side, because most answers are the same. An unparsable answer
// is wrong, or with `unparsable` "negative" the answer "negative".
struct PairedResult {
  int64_t samples = 0;
  Flips all, positives, negatives;  // by the truth: positives move recall, negatives false alarms
};

// kInvalidArgument when the two did not answer the same examples.
PairedResult compare_answers(const ClassifyResult& reference, const ClassifyResult& model,
                             const ClassifyOptions& options = {});

struct PerplexityOptions {
  int64_t context = 2048;  // ids per window
  std::string protocol =
      "gptq";  // "gptq": every position after the first; "llama.cpp": the second half of each window
  int64_t stride =
      0;  // > 0: windows start every `stride` ids; only positions that no earlier one scored count
  int64_t limit = 0;  // > 0: at most this many windows
  int64_t batch_size = 4;
};

struct PerplexityResult {
  double perplexity = 0, mean_nll = 0, standard_error = 0;  // standard error of mean_nll over scored tokens
  int64_t tokens = 0;                                       // scored
  int64_t windows = 0, context = 0;
  double seconds = 0;
  MemoryUse memory;      // of the model; not counted for one of two that run side by side
  std::string protocol;  // in words
};

PerplexityResult perplexity(const LanguageModel& model, const std::filesystem::path& text,
                            const PerplexityOptions& options = {}, const Log& log = {});

struct DivergenceOptions {
  int64_t context = 512;
  int64_t limit = 0;  // > 0: at most this many windows
  int64_t batch_size = 4;
};

struct DivergenceResult {
  double mean_kl = 0, median_kl = 0, p95_kl = 0, p99_kl = 0, p999_kl = 0, max_kl = 0,
         standard_error = 0;  // nats
  double top1_agreement = 0;
  PerplexityResult perplexity, reference_perplexity;  // of the same windows, protocol "gptq"
  int64_t tokens = 0, windows = 0, context = 0;
  double seconds = 0;
  MemoryUse memory, reference_memory;
  std::string protocol;
};

// KL(reference || model) at every position of the same windows; both models run side by side, no logits are
// stored.
DivergenceResult divergence(const LanguageModel& model, const LanguageModel& reference,
                            const std::filesystem::path& text, const DivergenceOptions& options = {},
                            const Log& log = {});

struct EmbeddingsOptions {
  EmbedOptions embed;
  int64_t limit = 0;  // > 0: only the first texts
};

// Cosines between the embeddings that two models make of the same texts.
struct EmbeddingsResult {
  double mean_cosine = 0, min_cosine = 0, p1_cosine = 0, p5_cosine = 0, median_cosine = 0, standard_error = 0;
  // Spearman's rank correlation of the cosines between texts, as one model has them and as the other: what
  // search and clustering go by. None below three texts, and above 2,000 it is of the first 2,000.
  std::optional<double> similarity_spearman;
  int64_t worst_text = 0;  // number of the text with the least cosine, from 1
  int64_t texts = 0, tokens = 0, truncated = 0, width = 0;
  double seconds = 0, reference_seconds = 0;
  MemoryUse memory, reference_memory;
  std::string protocol;
};

// Of each line of a text file that is not blank, or each "text" of JSONL. kInvalidArgument: a model that is
// no encoder, no texts, embeddings of two widths, texts too long.
EmbeddingsResult compare_embeddings(const LanguageModel& model, const LanguageModel& reference,
                                    const std::filesystem::path& text, const EmbeddingsOptions& options = {},
                                    const Log& log = {});

// One JSON object with the fields above.
std::string to_json(const ClassifyResult& result);
std::string to_json(const PerplexityResult& result);
std::string to_json(const DivergenceResult& result);
std::string to_json(const SequenceClassifyResult& result);
std::string to_json(const EmbeddingsResult& result);
std::string to_json(const PairedResult& result);

// McNemar's exact test, two-sided: min(1, 2 P(X <= min(a, b))), X binomial of a + b trials with probability
// 1/2.
double mcnemar_p_value(int64_t became_wrong, int64_t became_right);

// 95 % Wilson score interval of successes / trials. Wilson 1927.
Proportion wilson_interval(int64_t successes, int64_t trials);

}  // namespace lowbit
