// The "pre_tokenizer" of tokenizer.json: cuts normalized text into the pieces that the model looks at one by
// one.
#pragma once

#include "base/json.h"
#include "text/tokenizer_pattern.h"

#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

// Pieces of `text` in order, none empty, none overlapping. What no piece covers was removed.
struct TextPieces {
  std::string text;
  std::vector<TextRange> pieces;
  bool is_start = false;  // the first piece begins where the whole original text begins
};

class PreTokenizer {
 public:
  // Null and absent mean: one piece. Throws kUnsupported naming a type that is not known.
  static PreTokenizer from_json(const Json* json);

  void apply(TextPieces& pieces) const;

 private:
  enum class Kind { kSplit, kSplitCharacters, kWords, kMetaspace, kPrefixSpace, kByteLevel };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kNever, kFirst };
  struct Match {
    TextRange range;
    bool is_match = false;
  };
  struct Step {
    Kind kind;
    Pattern pattern = {};
    bool invert = false;
    bool (*is_delimiter)(uint32_t) = nullptr;  // kSplitCharacters
    Behavior behavior = Behavior::kIsolated;
    std::string replacement = {};  // kMetaspace
    Prepend prepend = Prepend::kAlways;
    bool split = true;
  };

  void add(const Json& json);
  void add_metaspace(const Json& json);
  static Behavior behavior_from(const Json* json, Behavior otherwise);
  static void find_matches(const Step& step, std::string_view text, std::vector<Match>& matches);
  static void split(Behavior behavior, size_t offset, const std::vector<Match>& matches,
                    std::vector<TextRange>& out);
  static void apply_split(const Step& step, TextPieces& pieces);
  static void apply_metaspace(const Step& step, TextPieces& pieces);
  static void apply_prefix_space(TextPieces& pieces);
  static void apply_byte_level(TextPieces& pieces);

  std::vector<Step> steps_;
};

}  // namespace lowbit
