#include "text/added_tokens.h"

#include "base/fail.h"
#include "text/unicode.h"

#include <algorithm>

namespace lowbit {
namespace {

bool flag(const Json& json, std::string_view key, bool otherwise) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

bool overlaps(std::span<const TextRange> sorted, size_t begin, size_t end) {
  const auto after = std::partition_point(sorted.begin(), sorted.end(),
                                          [&](const TextRange& range) { return range.end <= begin; });
  return after != sorted.end() && after->begin < end && after->begin < after->end;
}

// A match may take in spaces that belong to the text around it; whether it is literal is decided by the rest.
TextRange without_outer_spaces(std::string_view text, TextRange range) {
  const auto is_blank = [](uint32_t c) { return is_space(c) || c == 0x2581; };
  while (range.begin < range.end && is_blank(decode_utf8(text, range.begin).value)) {
    range.begin += decode_utf8(text, range.begin).length;
  }
  while (range.end > range.begin && is_blank(decode_utf8_before(text, range.end).value)) {
    range.end -= decode_utf8_before(text, range.end).length;
  }
  return range;
}

}  // namespace

AddedToken AddedToken::from_json(const Json& json) {
  AddedToken token;
  token.content = json.get("content").as_string();
  token.special = flag(json, "special", false);
  token.single_word = flag(json, "single_word", false);
  token.lstrip = flag(json, "lstrip", false);
  token.rstrip = flag(json, "rstrip", false);
  token.normalized = flag(json, "normalized", !token.special);
  if (token.content.size() > TokenMatcher::kMaxContentBytes) {
    fail(ErrorCode::kUnsupported, "an added token has {} bytes, at most {} are supported",
         token.content.size(), TokenMatcher::kMaxContentBytes);
  }
  return token;
}

void TokenMatcher::add(std::string_view content, int32_t value) {
  if (content.empty()) return;
  if (first_.empty()) {
    first_.assign(256, -1);
    nodes_.emplace_back();
  }
  int32_t node = 0;
  for (size_t i = 0; i < content.size(); ++i) {
    const auto byte = static_cast<unsigned char>(content[i]);
    const auto [child, is_new] =
        children_.try_emplace(static_cast<uint64_t>(node) << 8 | byte, static_cast<int32_t>(nodes_.size()));
    if (is_new) {
      nodes_.emplace_back();
      if (node == 0) first_[byte] = child->second;
    }
    node = child->second;
  }
  if (nodes_[static_cast<size_t>(node)].value < 0) nodes_[static_cast<size_t>(node)].value = value;
}

TokenMatcher::Hit TokenMatcher::find(std::string_view text, size_t from) const {
  if (first_.empty()) return {};
  for (size_t begin = from; begin < text.size(); ++begin) {
    int32_t node = first_[static_cast<unsigned char>(text[begin])];
    if (node < 0) continue;
    Hit hit;
    for (size_t at = begin + 1;; ++at) {
      const int32_t value = nodes_[static_cast<size_t>(node)].value;
      if (value >= 0) hit = {begin, at, value};
      if (at >= text.size()) break;
      const auto child =
          children_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[at]));
      if (child == children_.end()) break;
      node = child->second;
    }
    if (hit.value >= 0) return hit;
  }
  return {};
}

void AddedTokens::add(const AddedToken& token, int32_t id) {
  // Which list and which of two tokens of one content counts for what is as in HF tokenizers: the first
  // special one decides where it is looked for, the last one decides the other flags.
  if (token.special && special_.insert(token.content).second) special_list_.emplace_back(token, id);
  tokens_[id] = token;
  if (!is_special(token.content)) plain_list_.emplace_back(token, id);
}

void AddedTokens::prepare(const Normalizer& normalizer) {
  for (const auto* list : {&special_list_, &plain_list_}) {
    for (const auto& [token, id] : *list) {
      if (!token.normalized) {
        plain_.add(token.content, id);
        continue;
      }
      const std::string content = normalizer.apply(token.content, false).text;
      if (content.size() > TokenMatcher::kMaxContentBytes) {
        fail(ErrorCode::kUnsupported,
             "the normal form of an added token has {} bytes, at most {} are supported", content.size(),
             TokenMatcher::kMaxContentBytes);
      }
      normalized_.add(content, id);
      has_special_normalized_ = has_special_normalized_ || is_special(token.content);
    }
  }
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

void AddedTokens::split(std::string_view text, bool is_normalized, const Filter& filter, size_t base,
                        std::span<const uint32_t> origin, std::vector<TextSegment>& segments) const {
  const TokenMatcher& matcher = is_normalized ? normalized_ : plain_;
  const auto original = [&](size_t at) { return origin.empty() ? base + at : base + origin[at]; };
  const auto add_text = [&](size_t begin, size_t end) {
    if (begin < end) segments.push_back({{begin, end}, -1});
  };
  size_t done = 0, from = 0;
  for (;;) {
    const TokenMatcher::Hit hit = matcher.find(text, from);
    if (hit.value < 0) break;
    from = hit.end;
    const AddedToken& token = tokens_.at(hit.value);
    if (is_special(token.content)) {
      if (!filter.parse_special) continue;
      const TextRange core = without_outer_spaces(text, {hit.begin, hit.end});
      if (core.begin < core.end &&
          overlaps(filter.literal, original(core.begin), original(core.end - 1) + 1)) {
        from = hit.begin + 1;  // literal text must not hide a real token that begins inside of this match
        continue;
      }
    }
    size_t begin = hit.begin, end = hit.end;
    if (token.single_word) {
      const bool touches_left = begin > 0 && is_word(decode_utf8_before(text, begin).value);
      const bool touches_right = end < text.size() && is_word(decode_utf8(text, end).value);
      if (touches_left || touches_right) continue;
    }
    if (token.lstrip) {
      while (begin > done && is_space(decode_utf8_before(text, begin).value))
        begin -= decode_utf8_before(text, begin).length;
    }
    if (token.rstrip) {
      while (end < text.size() && is_space(decode_utf8(text, end).value))
        end += decode_utf8(text, end).length;
    }
    begin = std::max(begin, done);
    add_text(done, begin);
    segments.push_back({{begin, end}, hit.value});
    done = end;
  }
  add_text(done, text.size());
}

}  // namespace lowbit
