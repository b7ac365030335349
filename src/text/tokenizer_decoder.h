// The "decoder" of tokenizer.json: tokens back to text. It runs as a chain of stages that are fed token by
// token, so that a stream and a whole sequence take the same way.
#pragma once

#include "base/json.h"
#include "text/tokenizer_pattern.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class Decoder {
 public:
  // Null and absent mean: the tokens with one space between them. Throws kUnsupported naming a type that is
  // not known.
  static Decoder from_json(const Json* json);

  enum class Kind { kJoin, kByteLevel, kMetaspace, kByteFallback, kFuse, kStrip, kReplace, kWordPiece, kBpe };
  struct Step {
    Kind kind;
    Pattern pattern = {};
    std::string content =
        {};  // what stands for a match; the prefix of WordPiece; the suffix of BPE; the stripped character
    size_t start = 0, stop = 0;  // kStrip
    bool is_on = true;           // WordPiece: clean up; Metaspace: the first token's mark is dropped
  };
  const std::vector<Step>& steps() const { return steps_; }

 private:
  void add(const Json& json);
  std::vector<Step> steps_;
};

// A part of a token. A stage may pass a long token on in several parts.
struct TokenPart {
  std::string_view text;
  bool begins = true;  // the first part of its token
};

class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual void push(TokenPart part) = 0;
  virtual void finish() = 0;
};

// One run of a decoder. Every text it returns is whole characters.
class DecoderRun {
 public:
  // `decoder` must outlive the run.
  explicit DecoderRun(const Decoder& decoder);
  ~DecoderRun();
  void push(std::string_view token);
  void finish();
  // What has become certain since the last call.
  std::string take();

 private:
  std::string out_;
  std::vector<std::unique_ptr<DecoderStage>> stages_;  // first to last
};

}  // namespace lowbit
