// The "normalizer" of tokenizer.json: text to the text that is split and looked up, with the way back to the
// original.
#pragma once

#include "base/json.h"
#include "text/precompiled_charsmap.h"
#include "text/tokenizer_pattern.h"
#include "text/unicode.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct NormalizedText {
  std::string text;
  // For each byte of `text` the byte of the original that it stems from, never decreasing; empty when not
  // asked for.
  std::vector<uint32_t> origin;
  // The first character stems from the first one of the original. False where what stood there was dropped.
  bool keeps_start = true;
};

class Normalizer {
 public:
  // Null and absent mean: change nothing. Throws kUnsupported naming a type that is not known.
  static Normalizer from_json(const Json* json);

  bool is_identity() const { return steps_.empty(); }
  // Throws kUnsupported when the text grows beyond any sensible measure (64 times and 64 KiB).
  NormalizedText apply(std::string_view text, bool with_origin) const;

 private:
  enum class Kind {
    kForm,
    kLowercase,
    kPrepend,
    kReplace,
    kStripAccents,
    kStrip,
    kCleanText,
    kSeparateIdeographs,
    kStripNonspacing,
    kNmt,
    kByteLevel,
    kCharsmap
  };
  struct Step {
    Kind kind;
    NormalForm form = NormalForm::kNfc;
    Pattern pattern = {};
    std::string content = {};
    bool left = false, right = false;
    std::shared_ptr<const PrecompiledCharsmap> charsmap = {};
  };
  class Rewriter;

  void add(const Json& json);
  static void apply_charsmap(const PrecompiledCharsmap& charsmap, std::string_view text, Rewriter& to);
  static void apply_step(const Step& step, const NormalizedText& from, Rewriter& to);

  std::vector<Step> steps_;
};

}  // namespace lowbit
