// How far the embeddings of a model are from those of the model it was made from.
#include "base/fail.h"
#include "eval/statistics.h"
#include "eval/validate.h"
#include "lowbit/dataset.h"
#include "runtime/language_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace lowbit {
namespace {

constexpr int64_t kMostForPairs = 2000;

std::vector<std::string> read_texts(const std::filesystem::path& file, int64_t limit) {
  const Dataset dataset = load_dataset(file);
  std::vector<std::string> texts;
  auto add = [&](std::string_view text) {
    const size_t begin = text.find_first_not_of(" \t\r");
    if (begin == text.npos || (limit > 0 && static_cast<int64_t>(texts.size()) >= limit)) return;
    texts.emplace_back(text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1));
  };
  if (dataset.kind == DatasetKind::kChat) {
    fail(ErrorCode::kInvalidArgument,
         "{} holds dialogues; embeddings are of texts: one text a line, or JSONL with \"text\"",
         file.string());
  }
  for (const Example& example : dataset.examples) {
    if (dataset.kind == DatasetKind::kText) {
      add(example.text);
      continue;
    }
    for (std::string_view rest = example.text; !rest.empty();) {
      const size_t end = rest.find('\n');
      add(rest.substr(0, end));
      rest.remove_prefix(end == rest.npos ? rest.size() : end + 1);
    }
  }
  if (texts.empty()) fail(ErrorCode::kInvalidArgument, "{} has no texts", file.string());
  return texts;
}

double cosine(const float* a, const float* b, int64_t width) {
  double dot = 0, squares_a = 0, squares_b = 0;
  for (int64_t i = 0; i < width; ++i) {
    dot += double{a[i]} * double{b[i]};
    squares_a += double{a[i]} * double{a[i]};
    squares_b += double{b[i]} * double{b[i]};
  }
  return squares_a > 0 && squares_b > 0 ? dot / std::sqrt(squares_a * squares_b) : 0;
}

std::vector<float> similarities(const Embeddings& all) {
  const int64_t count = std::min(all.count, kMostForPairs);
  std::vector<float> result;
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = a + 1; b < count; ++b) {
      result.push_back(static_cast<float>(
          cosine(all.values.data() + a * all.width, all.values.data() + b * all.width, all.width)));
    }
  }
  return result;
}

Embeddings timed(const LanguageModel& model, const std::vector<std::string>& texts,
                 const EmbedOptions& options, const Log& log, double& seconds) {
  const auto start = std::chrono::steady_clock::now();
  Embeddings result = embed(model, texts, options, log);
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace

EmbeddingsResult compare_embeddings(const LanguageModel& model, const LanguageModel& reference,
                                    const std::filesystem::path& text, const EmbeddingsOptions& options,
                                    const Log& log) {
  validate(options);
  const std::vector<std::string> texts = read_texts(text, options.limit);
  EmbeddingsResult result;
  // The source says how its texts are to be read: a quantized copy may lack the files beside the weights.
  const Embeddings theirs = timed(reference, texts, options.embed, log, result.reference_seconds);
  EmbedOptions same = options.embed;
  same.pooling = theirs.pooling;
  same.max_length = theirs.max_length;
  const Embeddings ours = timed(model, texts, same, log, result.seconds);
  if (ours.width != theirs.width) {
    fail(ErrorCode::kInvalidArgument,
         "{} makes embeddings of {} numbers, {} of {}: these are not a model and its source",
         model.state().folder.string(), ours.width, reference.state().folder.string(), theirs.width);
  }
  std::vector<double> cosines;
  RunningMean mean;
  for (int64_t i = 0; i < ours.count; ++i) {
    cosines.push_back(
        cosine(ours.values.data() + i * ours.width, theirs.values.data() + i * ours.width, ours.width));
    if (!std::isfinite(cosines.back())) {
      fail(ErrorCode::kCorruptFile, "text {} has an embedding that is not finite: a model is damaged", i + 1);
    }
    mean.add(cosines.back());
  }
  result.worst_text = std::min_element(cosines.begin(), cosines.end()) - cosines.begin() + 1;
  std::sort(cosines.begin(), cosines.end());
  result.mean_cosine = mean.mean();
  result.standard_error = mean.standard_error();
  result.min_cosine = cosines.front();
  result.p1_cosine = percentile(cosines, 0.01);
  result.p5_cosine = percentile(cosines, 0.05);
  result.median_cosine = percentile(cosines, 0.5);
  result.similarity_spearman = spearman(similarities(ours), similarities(theirs));
  result.texts = ours.count;
  result.tokens = ours.tokens;
  result.truncated = ours.truncated;
  result.width = ours.width;
  result.memory = model.memory();
  result.reference_memory = reference.memory();
  result.protocol =
      fmt::format("{}, of at most {} tokens each, {} pooling; cosines of each text's two embeddings",
                  options.limit > 0 ? fmt::format("the first {} texts", result.texts) : "each text alone",
                  theirs.max_length, theirs.pooling);
  return result;
}

}  // namespace lowbit
