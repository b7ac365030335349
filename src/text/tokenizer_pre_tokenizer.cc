#include "text/tokenizer_pre_tokenizer.h"

#include "base/fail.h"
#include "text/byte_level.h"
#include "text/unicode.h"

namespace lowbit {
namespace {

constexpr size_t kMaxSteps = 64;

bool flag(const Json& json, std::string_view key, bool otherwise) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

}  // namespace

PreTokenizer PreTokenizer::from_json(const Json* json) {
  PreTokenizer pre_tokenizer;
  if (json != nullptr && !json->is_null()) pre_tokenizer.add(*json);
  return pre_tokenizer;
}

PreTokenizer::Behavior PreTokenizer::behavior_from(const Json* json, Behavior otherwise) {
  if (json == nullptr || json->is_null()) return otherwise;
  const std::string& name = json->as_string();
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  fail(ErrorCode::kUnsupported, "the split behavior \"{}\" is not supported", name);
}

void PreTokenizer::add(const Json& json) {
  const std::string& type = json.get("type").as_string();
  if (steps_.size() >= kMaxSteps) fail(ErrorCode::kUnsupported, "more than {} pre-tokenizers", kMaxSteps);
  const auto add_characters = [&](bool (*is_delimiter)(uint32_t), Behavior behavior) {
    steps_.push_back({.kind = Kind::kSplitCharacters, .is_delimiter = is_delimiter, .behavior = behavior});
  };
  if (type == "Sequence") {
    for (const Json& element : json.get("pretokenizers").as_array()) add(element);
  } else if (type == "ByteLevel") {
    if (flag(json, "add_prefix_space", true)) steps_.push_back({.kind = Kind::kPrefixSpace});
    if (flag(json, "use_regex", true)) {
      steps_.push_back({.kind = Kind::kSplit, .pattern = Pattern::from_regex(kGpt2SplitPattern)});
    }
    steps_.push_back({.kind = Kind::kByteLevel});
  } else if (type == "Split") {
    const Json* behavior = &json.get("behavior");
    steps_.push_back({.kind = Kind::kSplit,
                      .pattern = Pattern::from_json(json.get("pattern")),
                      .invert = flag(json, "invert", false),
                      .behavior = behavior_from(behavior, Behavior::kIsolated)});
  } else if (type == "Digits") {
    add_characters(is_number,
                   flag(json, "individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous);
  } else if (type == "Metaspace") {
    add_metaspace(json);
  } else if (type == "Whitespace") {
    steps_.push_back({.kind = Kind::kWords, .invert = true, .behavior = Behavior::kRemoved});
  } else if (type == "WhitespaceSplit") {
    add_characters(is_space, Behavior::kRemoved);
  } else if (type == "BertPreTokenizer") {
    add_characters(is_space, Behavior::kRemoved);
    add_characters(is_punctuation, Behavior::kIsolated);
  } else if (type == "Punctuation") {
    add_characters(is_punctuation, behavior_from(json.find("behavior"), Behavior::kIsolated));
  } else {
    fail(ErrorCode::kUnsupported, "the pre-tokenizer \"{}\" is not supported", type);
  }
}

void PreTokenizer::add_metaspace(const Json& json) {
  Step step{.kind = Kind::kMetaspace};
  step.replacement = json.get("replacement").as_string();
  if (step.replacement.empty() || decode_utf8(step.replacement, 0).length != step.replacement.size()) {
    fail(ErrorCode::kCorruptFile, "Metaspace has the replacement \"{}\", expected one character",
         step.replacement.substr(0, 100));
  }
  // Old files say add_prefix_space, newer ones prepend_scheme; where both stand they must agree.
  const Json* scheme = json.find("prepend_scheme");
  const bool add_prefix_space = flag(json, "add_prefix_space", true);
  if (scheme == nullptr || scheme->is_null()) {
    step.prepend = add_prefix_space ? Prepend::kAlways : Prepend::kNever;
  } else if (scheme->as_string() == "always") {
    step.prepend = Prepend::kAlways;
  } else if (scheme->as_string() == "never") {
    step.prepend = Prepend::kNever;
  } else if (scheme->as_string() == "first") {
    step.prepend = Prepend::kFirst;
  } else {
    fail(ErrorCode::kUnsupported, "the prepend_scheme \"{}\" of Metaspace is not supported",
         scheme->as_string());
  }
  if (!add_prefix_space && step.prepend != Prepend::kNever) {
    fail(ErrorCode::kCorruptFile, "Metaspace has add_prefix_space false but prepend_scheme \"{}\"",
         scheme->as_string());
  }
  step.split = flag(json, "split", true);
  step.pattern = Pattern::from_literal(step.replacement);
  step.behavior = Behavior::kMergedWithNext;
  steps_.push_back(std::move(step));
}

void PreTokenizer::apply(TextPieces& pieces) const {
  for (const Step& step : steps_) {
    if (pieces.pieces.empty()) return;
    switch (step.kind) {
      case Kind::kSplit:
      case Kind::kSplitCharacters:
      case Kind::kWords:
        apply_split(step, pieces);
        break;
      case Kind::kMetaspace:
        apply_metaspace(step, pieces);
        break;
      case Kind::kPrefixSpace:
        apply_prefix_space(pieces);
        break;
      case Kind::kByteLevel:
        apply_byte_level(pieces);
        break;
    }
  }
}

// The whole text as matches and what lies between them.
void PreTokenizer::find_matches(const Step& step, std::string_view text, std::vector<Match>& matches) {
  matches.clear();
  size_t covered = 0;
  const auto add_match = [&](TextRange range) {
    if (covered < range.begin) matches.push_back({{covered, range.begin}, false});
    matches.push_back({range, true});
    covered = range.end;
  };
  if (step.kind == Kind::kSplitCharacters) {
    for (size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text, at);
      if (step.is_delimiter(c.value)) add_match({at, at + c.length});
      at += c.length;
    }
  } else if (step.kind == Kind::kWords) {  // \w+|[^\w\s]+
    const auto kind_of = [](uint32_t c) { return is_word(c) ? 1 : is_space(c) ? 0 : 2; };
    for (size_t at = 0; at < text.size();) {
      const int kind = kind_of(decode_utf8(text, at).value);
      size_t end = at;
      while (end < text.size() && kind_of(decode_utf8(text, end).value) == kind)
        end += decode_utf8(text, end).length;
      if (kind != 0) add_match({at, end});
      at = end;
    }
  } else {
    std::vector<TextRange> ranges;
    step.pattern.find_all(text, ranges);
    for (const TextRange& range : ranges) add_match(range);
  }
  if (covered < text.size()) matches.push_back({{covered, text.size()}, false});
  if (step.invert) {
    for (Match& match : matches) match.is_match = !match.is_match;
  }
}

void PreTokenizer::split(Behavior behavior, size_t offset, const std::vector<Match>& matches,
                         std::vector<TextRange>& out) {
  const size_t first = out.size();
  const auto add = [&](TextRange range) { out.push_back({range.begin + offset, range.end + offset}); };
  bool previous = false;
  switch (behavior) {
    case Behavior::kIsolated:
      for (const Match& match : matches) add(match.range);
      break;
    case Behavior::kRemoved:
      for (const Match& match : matches) {
        if (!match.is_match) add(match.range);
      }
      break;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Match& match : matches) {
        const bool joins =
            behavior == Behavior::kContiguous ? match.is_match == previous : match.is_match && !previous;
        if (joins && out.size() > first) {
          out.back().end = match.range.end + offset;
        } else {
          add(match.range);
        }
        previous = match.is_match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (size_t i = 0; i < matches.size(); ++i) {
        TextRange range = matches[i].range;
        // A delimiter joins what follows, unless that is a delimiter too.
        if (matches[i].is_match && i + 1 < matches.size() && !matches[i + 1].is_match)
          range.end = matches[++i].range.end;
        add(range);
      }
      break;
  }
  size_t kept = first;
  for (size_t i = first; i < out.size(); ++i) {
    if (out[i].begin < out[i].end) out[kept++] = out[i];
  }
  out.resize(kept);
}

void PreTokenizer::apply_split(const Step& step, TextPieces& pieces) {
  std::vector<TextRange> out;
  out.reserve(pieces.pieces.size());
  std::vector<Match> matches;
  const TextRange first = pieces.pieces.front();
  for (const TextRange& piece : pieces.pieces) {
    find_matches(step, std::string_view(pieces.text).substr(piece.begin, piece.end - piece.begin), matches);
    split(step.behavior, piece.begin, matches, out);
  }
  if (!out.empty() && out.front().begin != first.begin) pieces.is_start = false;
  pieces.pieces = std::move(out);
}

void PreTokenizer::apply_metaspace(const Step& step, TextPieces& pieces) {
  TextPieces next;
  next.is_start = pieces.is_start;
  next.text.reserve(pieces.text.size() + pieces.text.size() / 2);
  std::vector<Match> matches;
  bool is_start = pieces.is_start;
  for (const TextRange& piece : pieces.pieces) {
    const std::string_view text = std::string_view(pieces.text).substr(piece.begin, piece.end - piece.begin);
    const size_t begin = next.text.size();
    const bool is_marked = text.starts_with(step.replacement) || text.starts_with(' ');
    if (!is_marked && (step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && is_start))) {
      next.text += step.replacement;
    }
    for (char c : text) {
      if (c == ' ') {
        next.text += step.replacement;
      } else {
        next.text += c;
      }
    }
    if (step.split) {
      find_matches(step, std::string_view(next.text).substr(begin), matches);
      split(step.behavior, begin, matches, next.pieces);
    } else {
      next.pieces.push_back({begin, next.text.size()});
    }
    is_start = false;
  }
  pieces = std::move(next);
}

void PreTokenizer::apply_prefix_space(TextPieces& pieces) {
  TextPieces next;
  next.is_start = pieces.is_start;
  for (const TextRange& piece : pieces.pieces) {
    const std::string_view text = std::string_view(pieces.text).substr(piece.begin, piece.end - piece.begin);
    const size_t begin = next.text.size();
    if (!text.starts_with(' ')) next.text += ' ';
    next.text += text;
    next.pieces.push_back({begin, next.text.size()});
  }
  pieces = std::move(next);
}

void PreTokenizer::apply_byte_level(TextPieces& pieces) {
  TextPieces next;
  next.is_start = pieces.is_start;
  next.text.reserve(pieces.text.size() * 2);
  next.pieces.reserve(pieces.pieces.size());
  for (const TextRange& piece : pieces.pieces) {
    const size_t begin = next.text.size();
    for (size_t i = piece.begin; i < piece.end; ++i)
      next.text += byte_level_text(static_cast<unsigned char>(pieces.text[i]));
    next.pieces.push_back({begin, next.text.size()});
  }
  pieces = std::move(next);
}

}  // namespace lowbit
