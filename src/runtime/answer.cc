#include "runtime/answer.h"

#include <algorithm>

namespace lowbit {

Answer::Answer(const Tokenizer* tokenizer, const GenerateOptions& options, size_t index,
               const StreamSink& stream)
    : options_(options), index_(index), stream_(stream) {
  if (tokenizer)
    decoder_.emplace(*tokenizer, DecodeOptions{.skip_special_tokens = true, .skip_unknown_ids = true});
}

void Answer::push(int32_t id) {
  result_.token_ids.push_back(id);
  if (decoder_) take_text(decoder_->push(id), false);
}

void Answer::end(const char* reason) {
  if (is_done()) return;
  if (decoder_) take_text(decoder_->finish(), true);
  if (!is_done()) result_.finish_reason = reason;
}

void Answer::take_text(const std::string& text, bool is_last) {
  held_ += text;
  size_t cut = std::string::npos;
  for (const std::string& stop : options_.stop) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    held_.resize(cut);
    release(held_);
    held_.clear();
    if (!is_done()) result_.finish_reason = "stop";
    return;
  }
  // Hold back the longest tail that could grow into a stop text.
  size_t keep = 0;
  if (!is_last) {
    for (const std::string& stop : options_.stop) {
      for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
        if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) keep = length;
      }
    }
  }
  const std::string ready = held_.substr(0, held_.size() - keep);
  held_.erase(0, ready.size());
  release(ready);
}

void Answer::release(std::string_view text) {
  if (text.empty()) return;
  result_.text += text;
  if (stream_ && !stream_(index_, text)) result_.finish_reason = "interrupted";
}

}  // namespace lowbit
