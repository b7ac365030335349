// The stages behind DecoderRun. Each gets tokens in order, a long token perhaps in parts, and passes text on
// as soon as no later token can change it.
#include "base/fail.h"
#include "text/byte_level.h"
#include "text/tokenizer_decoder.h"
#include "text/unicode.h"

#include <algorithm>
#include <utility>

namespace lowbit {
namespace {

using Kind = Decoder::Kind;
using Step = Decoder::Step;

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";
constexpr size_t kMaxTokenBytes = size_t{1} << 20;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty() || text.find(from) == text.npos) return;
  std::string out;
  size_t at = 0;
  for (size_t hit = text.find(from); hit != text.npos; hit = text.find(from, at)) {
    out.append(text, at, hit - at);
    out += to;
    at = hit + from.size();
  }
  out.append(text, at);
  text = std::move(out);
}

class Sink : public DecoderStage {
 public:
  explicit Sink(std::string& out) : out_(out) {}
  void push(TokenPart part) override {
    total_ += part.text.size();
    if (total_ > kMaxTotalBytes)
      fail(ErrorCode::kUnsupported, "the decoded text has more than {} bytes", kMaxTotalBytes);
    out_ += part.text;
  }
  void finish() override {}

 private:
  static constexpr size_t kMaxTotalBytes = size_t{1} << 30;
  std::string& out_;
  size_t total_ = 0;
};

class Stage : public DecoderStage {
 public:
  Stage(const Step& step, DecoderStage& next) : step_(step), next_(next) {}
  void finish() override { next_.finish(); }

 protected:
  const Step& step_;
  DecoderStage& next_;
};

// Puts the parts of a token together again, for stages that need whole tokens.
class Gather : public DecoderStage {
 public:
  explicit Gather(DecoderStage& next) : next_(next) {}
  void push(TokenPart part) override {
    if (part.begins) flush();
    has_token_ = true;
    token_ += part.text;
  }
  void finish() override {
    flush();
    next_.finish();
  }

 private:
  void flush() {
    if (has_token_) next_.push({token_, true});
    token_.clear();
    has_token_ = false;
  }
  DecoderStage& next_;
  std::string token_;
  bool has_token_ = false;
};

// No decoder: one space between tokens.
class Join : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    if (!is_first_) next_.push({" ", true});
    is_first_ = false;
    next_.push(part);
  }

 private:
  bool is_first_ = true;
};

// All tokens are one sequence of bytes; what is not UTF-8 in it becomes U+FFFD.
class ByteLevel : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    const size_t before = bytes_.size();
    for (size_t at = 0; at < part.text.size();) {
      const CodePoint c = decode_utf8(part.text, at);
      const int byte = byte_level_byte(c.value);
      if (byte < 0) {  // an added token that is not in this alphabet: the token as it is
        bytes_.resize(before);
        bytes_ += part.text;
        break;
      }
      bytes_ += static_cast<char>(byte);
      at += c.length;
    }
    emit(false);
  }
  void finish() override {
    emit(true);
    next_.finish();
  }

 private:
  void emit(bool is_end) {
    std::string text;
    size_t at = 0;
    while (at < bytes_.size()) {
      const Utf8Unit unit = next_utf8_unit(bytes_, at);
      if (unit.is_truncated && !is_end) break;
      text += unit.is_valid ? std::string_view(bytes_).substr(at, unit.length) : kReplacementCharacter;
      at += unit.length;
    }
    bytes_.erase(0, at);
    if (text.empty()) return;
    next_.push({text, is_first_});
    is_first_ = false;
  }

  std::string bytes_;  // not yet passed on: less than one character between two tokens
  bool is_first_ = true;
};

class Metaspace : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    if (part.begins) ++tokens_;
    std::string text(part.text);
    replace_all(text, step_.content, tokens_ == 1 && step_.is_on ? "" : " ");
    next_.push({text, part.begins});
  }

 private:
  size_t tokens_ = 0;
};

// Neighbouring tokens "<0x..>" are bytes. Whether they become text or one U+FFFD each is known at the end of
// the run.
class ByteFallback : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    const int byte = byte_of(part.text);
    if (byte >= 0) {
      bytes_ += static_cast<char>(byte);
      return;
    }
    flush();
    next_.push(part);
  }
  void finish() override {
    flush();
    next_.finish();
  }

 private:
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
    int value = 0;
    for (char c : token.substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  }
  void flush() {
    if (bytes_.empty()) return;
    if (is_utf8(bytes_)) {
      next_.push({bytes_, true});
    } else {
      for (size_t i = 0; i < bytes_.size(); ++i) next_.push({kReplacementCharacter, true});
    }
    bytes_.clear();
  }
  std::string bytes_;
};

class Fuse : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    next_.push({part.text, is_first_});
    is_first_ = false;
  }

 private:
  bool is_first_ = true;
};

// Drops up to `start` characters at the beginning and `stop` at the end of each token.
class Strip : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    std::string text;
    if (part.begins) {
      is_leading_ = true;
      dropped_ = held_ = 0;
    }
    for (size_t at = 0; at < part.text.size();) {
      const size_t length = decode_utf8(part.text, at).length;
      const std::string_view character = part.text.substr(at, length);
      at += length;
      const bool is_content = character == step_.content;
      if (is_leading_ && is_content && dropped_ < step_.start) {
        ++dropped_;
        continue;
      }
      is_leading_ = false;
      if (is_content && held_ < step_.stop) {
        ++held_;  // perhaps among the last ones
        continue;
      }
      if (!is_content) {
        for (; held_ > 0; --held_) text += step_.content;
      }
      text += character;
    }
    next_.push({text, part.begins});
  }

 private:
  bool is_leading_ = true;
  size_t dropped_ = 0, held_ = 0;
};

class Replace : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    matches_.clear();
    step_.pattern.find_all(part.text, matches_);
    if (matches_.empty()) return next_.push(part);
    std::string text;
    size_t at = 0;
    for (const TextRange& match : matches_) {
      text += part.text.substr(at, match.begin - at);
      text += step_.content;
      at = match.end;
      if (text.size() > kMaxTokenBytes)
        fail(ErrorCode::kUnsupported, "the decoder makes a token of more than {} bytes", kMaxTokenBytes);
    }
    text += part.text.substr(at);
    next_.push({text, part.begins});
  }

 private:
  std::vector<TextRange> matches_;
};

class WordPiece : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    std::string text;
    if (!is_first_ && !step_.content.empty() && part.text.starts_with(step_.content)) {
      text = part.text.substr(step_.content.size());
    } else if (!is_first_ && !step_.content.empty()) {
      text = " " + std::string(part.text);
    } else {
      text = part.text;
    }
    is_first_ = false;
    if (step_.is_on) clean_up(text);
    next_.push({text, true});
  }

 private:
  static void clean_up(std::string& text) {
    static constexpr std::pair<std::string_view, std::string_view> kRules[] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    for (const auto& [from, to] : kRules) replace_all(text, from, to);
  }
  bool is_first_ = true;
};

// The suffix ends a word: a space, but not after the last token.
class Bpe : public Stage {
 public:
  using Stage::Stage;
  void push(TokenPart part) override {
    flush(" ");
    waiting_ = part.text;
    has_token_ = true;
  }
  void finish() override {
    flush("");
    next_.finish();
  }

 private:
  void flush(std::string_view after_word) {
    if (!has_token_) return;
    replace_all(waiting_, step_.content, after_word);
    next_.push({waiting_, true});
    has_token_ = false;
  }
  std::string waiting_;
  bool has_token_ = false;
};

std::unique_ptr<DecoderStage> make_stage(const Step& step, DecoderStage& next) {
  switch (step.kind) {
    case Kind::kJoin:
      return std::make_unique<Join>(step, next);
    case Kind::kByteLevel:
      return std::make_unique<ByteLevel>(step, next);
    case Kind::kMetaspace:
      return std::make_unique<Metaspace>(step, next);
    case Kind::kByteFallback:
      return std::make_unique<ByteFallback>(step, next);
    case Kind::kFuse:
      return std::make_unique<Fuse>(step, next);
    case Kind::kStrip:
      return std::make_unique<Strip>(step, next);
    case Kind::kReplace:
      return std::make_unique<Replace>(step, next);
    case Kind::kWordPiece:
      return std::make_unique<WordPiece>(step, next);
    case Kind::kBpe:
      return std::make_unique<Bpe>(step, next);
  }
  fail(ErrorCode::kInternal, "unknown decoder step");
}

bool fuses(Kind kind) { return kind == Kind::kFuse || kind == Kind::kByteLevel; }

// Parts will do for stages that look at single characters.
bool needs_whole_tokens(const Step& step) {
  if (step.kind == Kind::kReplace) {
    const std::string* literal = step.pattern.literal();
    return literal == nullptr || literal->empty() || decode_utf8(*literal, 0).length != literal->size();
  }
  return step.kind == Kind::kByteLevel || step.kind == Kind::kByteFallback || step.kind == Kind::kWordPiece ||
         step.kind == Kind::kBpe;
}

}  // namespace

DecoderRun::DecoderRun(const Decoder& decoder) {
  // Built from the end: each stage knows the next one.
  const std::vector<Step>& steps = decoder.steps();
  stages_.push_back(std::make_unique<Sink>(out_));
  for (size_t i = steps.size(); i-- > 0;) {
    stages_.push_back(make_stage(steps[i], *stages_.back()));
    bool is_fused = false;
    for (size_t before = 0; before < i; ++before) is_fused = is_fused || fuses(steps[before].kind);
    if (is_fused && needs_whole_tokens(steps[i]))
      stages_.push_back(std::make_unique<Gather>(*stages_.back()));
  }
  std::reverse(stages_.begin(), stages_.end());
}

DecoderRun::~DecoderRun() = default;

void DecoderRun::push(std::string_view token) { stages_.front()->push({token, true}); }
void DecoderRun::finish() { stages_.front()->finish(); }
std::string DecoderRun::take() { return std::exchange(out_, {}); }

}  // namespace lowbit
