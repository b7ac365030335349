// One answer as it grows: tokens to text, stop texts, and why it ended.
#pragma once

#include "lowbit/generate.h"

#include <optional>

namespace lowbit {

class Answer {
 public:
  Answer(const Tokenizer* tokenizer, const GenerateOptions& options, size_t index, const StreamSink& stream);

  // Takes a token that is not an end-of-sequence token. Ends the answer when a stop text is complete or the
  // sink says so.
  void push(int32_t id);
  // Ends it: "eos", "length", "context". Text that was held back is released.
  void end(const char* reason);

  bool is_done() const { return !result_.finish_reason.empty(); }
  size_t token_count() const { return result_.token_ids.size(); }
  GenerateResult& result() { return result_; }

 private:
  void release(std::string_view text);
  void take_text(const std::string& text, bool is_last);

  std::optional<StreamDecoder> decoder_;
  const GenerateOptions& options_;
  size_t index_;
  const StreamSink& stream_;
  std::string held_;  // may be the beginning of a stop text
  GenerateResult result_;
};

}  // namespace lowbit
