#include "base/fail.h"
#include "eval/validate.h"

namespace lowbit {
namespace {

void check_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) fail(ErrorCode::kInvalidArgument, "{} is {}, expected at least {}", name, value, least);
}

}  // namespace

Fields option_fields(ClassifyOptions& options) {
  return {
      {"batch_size", &options.batch_size, "prompts per batch; does not change the answers"},
      {"label_key", &options.label_key, "key of the JSON answer, and of the example's label"},
      {"unparsable", &options.unparsable,
       "answers without a label: count (on their own; a missed positive when the truth is positive) or "
       "negative "
       "(as the answer \"negative\")"},
      {"max_new_tokens", &options.max_new_tokens, "at most this many tokens per answer"},
      {"limit", &options.limit, "only the first examples, for trying out; 0: all"},
      {"max_length", &options.max_length,
       "encoders: tokens of a text, special ones included; 0: the model's max_position_embeddings"},
      {"truncate", &options.truncate, "encoders: cut texts that are longer; otherwise they are an error"}};
}

Fields option_fields(EmbeddingsOptions& options) {
  return {{"limit", &options.limit, "only the first texts; 0: all"}};
}

Fields option_fields(PerplexityOptions& options) {
  return {{"context", &options.context, "ids per window"},
          {"protocol", &options.protocol,
           "gptq (every position after the first is scored) or llama.cpp (the second half of each window)"},
          {"stride", &options.stride,
           "windows start every so many ids and only new positions are scored; 0: windows side by side"},
          {"limit", &options.limit, "at most this many windows; 0: all"},
          {"batch_size", &options.batch_size, "windows per batch; does not change the figures"}};
}

Fields option_fields(DivergenceOptions& options) {
  return {{"context", &options.context, "ids per window"},
          {"limit", &options.limit, "at most this many windows; 0: all"},
          {"batch_size", &options.batch_size, "windows per batch; does not change the figures"}};
}

void validate(const ClassifyOptions& options) {
  check_at_least("batch_size", options.batch_size, 1);
  check_at_least("max_new_tokens", options.max_new_tokens, 1);
  check_at_least("limit", options.limit, 0);
  if (options.label_key.empty())
    fail(ErrorCode::kInvalidArgument, "label_key is empty; name the key of the answer's label");
  if (options.unparsable != "count" && options.unparsable != "negative") {
    fail(ErrorCode::kInvalidArgument, "unparsable is \"{}\", expected \"count\" or \"negative\"",
         options.unparsable);
  }
}

void validate(const EmbeddingsOptions& options) { check_at_least("limit", options.limit, 0); }

void validate(const PerplexityOptions& options) {
  check_at_least("context", options.context, 2);
  if (options.protocol != "gptq" && options.protocol != "llama.cpp") {
    fail(ErrorCode::kInvalidArgument, "protocol is \"{}\", expected \"gptq\" or \"llama.cpp\"",
         options.protocol);
  }
  if (options.stride < 0 || options.stride >= options.context) {
    fail(ErrorCode::kInvalidArgument,
         "stride is {}, expected 1 to {} (context - 1), or 0 for windows side by side", options.stride,
         options.context - 1);
  }
  if (options.stride > 0 && options.protocol != "gptq") {
    fail(ErrorCode::kInvalidArgument, "stride goes with the protocol gptq only, not with {}",
         options.protocol);
  }
  check_at_least("batch_size", options.batch_size, 1);
  check_at_least("limit", options.limit, 0);
}

void validate(const DivergenceOptions& options) {
  check_at_least("context", options.context, 2);
  check_at_least("batch_size", options.batch_size, 1);
  check_at_least("limit", options.limit, 0);
}

}  // namespace lowbit
