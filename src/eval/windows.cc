#include "eval/windows.h"

#include "base/fail.h"
#include "base/files.h"
#include "eval/validate.h"
#include "lowbit/dataset.h"

#include <algorithm>

namespace lowbit {
namespace {

std::string load_text(const std::filesystem::path& file) {
  if (file.extension() != ".jsonl" && file.extension() != ".json") return read_file(file);
  const Dataset dataset = load_dataset(file);
  std::string text;
  for (const Example& example : dataset.examples) {
    if (example.text.empty() && !example.messages.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "{}: example {} is a dialogue; perplexity and divergence need text: a plain text file, or JSONL "
           "with \"text\"",
           file.string(), example.id);
    }
    if (!text.empty()) text += "\n\n";
    text += example.text;
  }
  return text;
}

int64_t most_windows(int64_t available, int64_t limit) {
  return limit > 0 ? std::min(available, limit) : available;
}

}  // namespace

std::vector<int32_t> load_text_ids(const Tokenizer& tokenizer, const std::filesystem::path& file) {
  const std::string text = load_text(file);
  if (text.empty())
    fail(ErrorCode::kInvalidArgument, "{} is empty; there is nothing to score", file.string());
  return tokenizer.encode(text);
}

int32_t added_bos(const Tokenizer& tokenizer) {
  const std::optional<int32_t> bos = tokenizer.bos_id();
  if (!bos) return -1;
  const std::vector<int32_t> ids = tokenizer.encode("a", {.add_special_tokens = true});
  return !ids.empty() && ids[0] == *bos ? *bos : -1;
}

WindowPlan plan_windows(const std::vector<int32_t>& ids, const PerplexityOptions& options, int32_t bos) {
  const int64_t context = options.context, count = static_cast<int64_t>(ids.size());
  validate(options);
  const bool is_llama_cpp = options.protocol == "llama.cpp";
  if (count < context) {
    fail(ErrorCode::kInvalidArgument,
         "the text has {} ids, fewer than one window of {}: give a longer text or a smaller context", count,
         context);
  }

  WindowPlan plan;
  const auto add = [&](int64_t begin, int64_t end, int64_t first_scored) {
    plan.windows.emplace_back(ids.begin() + begin, ids.begin() + end);
    plan.first_scored.push_back(first_scored);
  };
  if (options.stride > 0) {
    int64_t scored = 1;  // ids before this one have been scored, or cannot be
    for (int64_t begin = 0; scored < count; begin += options.stride) {
      if (options.limit > 0 && static_cast<int64_t>(plan.windows.size()) >= options.limit) break;
      const int64_t end = std::min(begin + context, count);
      add(begin, end, scored - begin);
      scored = end;
    }
    plan.protocol = fmt::format(
        "windows of {} ids every {} ids of the whole text, no special tokens, each id after the "
        "first scored once, exp of the mean NLL",
        context, options.stride);
  } else if (is_llama_cpp) {
    // Its BOS stands before the text and is then overwritten by the BOS of the first window.
    std::vector<int32_t> shifted;
    if (bos >= 0) {
      shifted.reserve(ids.size() + 1);
      shifted.push_back(bos);
      shifted.insert(shifted.end(), ids.begin(), ids.end());
    }
    const std::vector<int32_t>& source = bos >= 0 ? shifted : ids;
    const int64_t windows = most_windows(static_cast<int64_t>(source.size()) / context, options.limit);
    for (int64_t i = 0; i < windows; ++i) {
      plan.windows.emplace_back(source.begin() + i * context, source.begin() + (i + 1) * context);
      if (bos >= 0) plan.windows.back()[0] = bos;
      plan.first_scored.push_back(std::min(context / 2 + 1, context - 1));
    }
    plan.protocol = fmt::format(
        "llama.cpp: windows of {} ids of the whole text, {}, positions {} to {} of each scored, "
        "exp of the mean NLL",
        context, bos >= 0 ? "BOS first in each" : "no special tokens", plan.first_scored.front(),
        context - 1);
  } else {
    const int64_t windows = most_windows(count / context, options.limit);
    for (int64_t i = 0; i < windows; ++i) add(i * context, (i + 1) * context, 1);
    plan.protocol = fmt::format(
        "gptq: consecutive windows of {} ids of the whole text, no special tokens, each alone, "
        "positions 1 to {} scored, the rest dropped, exp of the mean NLL",
        context, context - 1);
  }
  if (options.limit > 0) plan.protocol += fmt::format(", only the first {} windows", plan.windows.size());
  return plan;
}

}  // namespace lowbit
