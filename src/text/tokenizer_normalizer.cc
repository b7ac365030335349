#include "text/tokenizer_normalizer.h"

#include "base/fail.h"
#include "text/byte_level.h"

namespace lowbit {
namespace {

constexpr size_t kMaxSteps = 64, kMaxContentBytes = 4096;

// Characters that NMT's normalizer drops.
bool is_dropped_by_nmt(uint32_t c) {
  return (c >= 0x1 && c <= 0x8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
}

// Characters that NMT's normalizer turns into a space.
bool is_space_to_nmt(uint32_t c) {
  return c == 0x9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
         c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
}

bool flag(const Json& json, std::string_view key, bool otherwise) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

}  // namespace

// Builds the next text from pieces of the last one, and new bytes that stand for such pieces.
class Normalizer::Rewriter {
 public:
  Rewriter(const NormalizedText& from, NormalizedText& to, size_t limit)
      : from_(from), to_(to), limit_(limit) {
    to_.text.reserve(from.text.size() + 16);
    to_.keeps_start = from.keeps_start;
  }

  void keep(size_t begin, size_t end) {
    note_start(begin, end > begin);
    to_.text.append(from_.text, begin, end - begin);
    if (!from_.origin.empty()) {
      to_.origin.insert(to_.origin.end(), from_.origin.begin() + static_cast<ptrdiff_t>(begin),
                        from_.origin.begin() + static_cast<ptrdiff_t>(end));
    }
    check();
  }

  // `text` stands for what is at byte `source` of the last text.
  void put(std::string_view text, size_t source) {
    note_start(source, !text.empty());
    to_.text += text;
    if (!from_.origin.empty())
      to_.origin.resize(to_.text.size(), from_.origin[std::min(source, from_.origin.size() - 1)]);
    check();
  }

  // HF tokenizers counts what a charsmap drops at the beginning to what follows, unlike other normalizers.
  void keep_start() { to_.keeps_start = from_.keeps_start; }

 private:
  void note_start(size_t source, bool is_text) {
    if (to_.text.empty() && is_text && source > 0) to_.keeps_start = false;
  }

  void check() const {
    if (to_.text.size() > limit_) {
      fail(ErrorCode::kUnsupported,
           "the normalizer turns a text into more than {} bytes, which looks like an attack", limit_);
    }
  }

  const NormalizedText& from_;
  NormalizedText& to_;
  size_t limit_;
};

Normalizer Normalizer::from_json(const Json* json) {
  Normalizer normalizer;
  if (json != nullptr && !json->is_null()) normalizer.add(*json);
  return normalizer;
}

void Normalizer::add(const Json& json) {
  const std::string& type = json.get("type").as_string();
  if (steps_.size() >= kMaxSteps) fail(ErrorCode::kUnsupported, "more than {} normalizers", kMaxSteps);
  const auto add_form = [&](NormalForm form) { steps_.push_back({.kind = Kind::kForm, .form = form}); };
  const auto content_of = [&](std::string_view key) {
    const std::string& content = json.get(key).as_string();
    if (content.size() > kMaxContentBytes) {
      fail(ErrorCode::kUnsupported, "{} has {} bytes of \"{}\", at most {} are supported", type,
           content.size(), key, kMaxContentBytes);
    }
    return content;
  };
  if (type == "Sequence") {
    for (const Json& element : json.get("normalizers").as_array()) add(element);
  } else if (type == "NFC") {
    add_form(NormalForm::kNfc);
  } else if (type == "NFD") {
    add_form(NormalForm::kNfd);
  } else if (type == "NFKC") {
    add_form(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    add_form(NormalForm::kNfkd);
  } else if (type == "Lowercase") {
    steps_.push_back({.kind = Kind::kLowercase});
  } else if (type == "Prepend") {
    steps_.push_back({.kind = Kind::kPrepend, .content = content_of("prepend")});
  } else if (type == "Replace") {
    steps_.push_back({.kind = Kind::kReplace,
                      .pattern = Pattern::from_json(json.get("pattern")),
                      .content = content_of("content")});
  } else if (type == "StripAccents") {
    steps_.push_back({.kind = Kind::kStripAccents});
  } else if (type == "Strip") {
    steps_.push_back({.kind = Kind::kStrip,
                      .left = flag(json, "strip_left", true),
                      .right = flag(json, "strip_right", true)});
  } else if (type == "Nmt") {
    steps_.push_back({.kind = Kind::kNmt});
  } else if (type == "ByteLevel") {
    steps_.push_back({.kind = Kind::kByteLevel});
  } else if (type == "Precompiled") {
    steps_.push_back({.kind = Kind::kCharsmap,
                      .charsmap = std::make_shared<const PrecompiledCharsmap>(
                          PrecompiledCharsmap::from_base64(json.get("precompiled_charsmap").as_string()))});
  } else if (type == "BertNormalizer") {
    const bool lowercase = flag(json, "lowercase", true);
    if (flag(json, "clean_text", true)) steps_.push_back({.kind = Kind::kCleanText});
    if (flag(json, "handle_chinese_chars", true)) steps_.push_back({.kind = Kind::kSeparateIdeographs});
    if (flag(json, "strip_accents", lowercase)) {
      add_form(NormalForm::kNfd);
      steps_.push_back({.kind = Kind::kStripNonspacing});
    }
    if (lowercase) steps_.push_back({.kind = Kind::kLowercase});
  } else {
    fail(ErrorCode::kUnsupported, "the normalizer \"{}\" is not supported", type);
  }
}

NormalizedText Normalizer::apply(std::string_view text, bool with_origin) const {
  NormalizedText current;
  current.text = text;
  if (with_origin) {
    current.origin.resize(text.size());
    for (size_t i = 0; i < text.size(); ++i) current.origin[i] = static_cast<uint32_t>(i);
  }
  const size_t limit = text.size() * 64 + 65536;
  for (const Step& step : steps_) {
    if (current.text.empty()) break;
    NormalizedText next;
    Rewriter rewriter(current, next, limit);
    apply_step(step, current, rewriter);
    current = std::move(next);
  }
  return current;
}

// As HF tokenizers: a grapheme cluster of less than six bytes is replaced as a whole by what stands for the
// shortest key that it begins with; the characters of others, and of those without a key, are replaced one by
// one.
void Normalizer::apply_charsmap(const PrecompiledCharsmap& charsmap, std::string_view text, Rewriter& to) {
  constexpr size_t kMaxClusterBytes = 5;
  size_t done = 0;
  const auto replace = [&](size_t begin, size_t end) {
    const std::optional<std::string_view> replacement = charsmap.find(text.substr(begin, end - begin));
    if (!replacement) return false;
    to.keep(done, begin);
    to.put(*replacement, begin);
    done = end;
    return true;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t end = grapheme_end(text, at);
    if (end - at > kMaxClusterBytes || !replace(at, end)) {
      for (size_t begin = at; begin < end;) {
        const size_t length = decode_utf8(text, begin).length;
        replace(begin, begin + length);
        begin += length;
      }
    }
    at = end;
  }
  to.keep(done, text.size());
  to.keep_start();
}

void Normalizer::apply_step(const Step& step, const NormalizedText& from, Rewriter& to) {
  const std::string_view text = from.text;
  const auto each = [&](auto visit) {
    for (size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text, at);
      visit(c.value, at, at + c.length);
      at += c.length;
    }
  };
  const auto keep_if = [&](auto belongs) {
    each([&](uint32_t c, size_t begin, size_t end) {
      if (belongs(c)) to.keep(begin, end);
    });
  };
  std::string scratch;
  switch (step.kind) {
    case Kind::kForm:
      for (size_t at = 0; at < text.size();) {
        // [at, run): unchanged. The run's last character stays back, it may combine with what follows.
        size_t run = at, last = at;
        while (run < text.size()) {
          const CodePoint c = decode_utf8(text, run);
          if (!is_normalization_boundary(c.value)) break;
          last = run;
          run += c.length;
        }
        if (run == text.size()) last = run;
        to.keep(at, last);
        if (last == text.size()) break;
        size_t end = run;
        while (end < text.size()) {
          const CodePoint c = decode_utf8(text, end);
          if (is_normalization_boundary(c.value)) break;
          end += c.length;
        }
        scratch.clear();
        append_normalized(scratch, text.substr(last, end - last), step.form);
        to.put(scratch, last);
        at = end;
      }
      break;
    case Kind::kLowercase:
      each([&](uint32_t c, size_t begin, size_t) {
        scratch.clear();
        append_lowercase(scratch, c);
        to.put(scratch, begin);
      });
      break;
    case Kind::kPrepend:
      to.put(step.content, 0);
      to.keep(0, text.size());
      break;
    case Kind::kReplace: {
      std::vector<TextRange> matches;
      step.pattern.find_all(text, matches);
      size_t at = 0;
      for (const TextRange& match : matches) {
        to.keep(at, match.begin);
        to.put(step.content, match.begin);
        at = match.end;
      }
      to.keep(at, text.size());
      break;
    }
    case Kind::kStripAccents:
      keep_if([](uint32_t c) { return !is_accent(c); });
      break;
    case Kind::kStripNonspacing:
      keep_if([](uint32_t c) { return !is_nonspacing_mark(c); });
      break;
    case Kind::kStrip: {
      size_t begin = 0, end = text.size();
      while (step.left && begin < end && is_space(decode_utf8(text, begin).value))
        begin += decode_utf8(text, begin).length;
      while (step.right && end > begin && is_space(decode_utf8_before(text, end).value))
        end -= decode_utf8_before(text, end).length;
      to.keep(begin, end);
      break;
    }
    case Kind::kCleanText:
      each([&](uint32_t c, size_t begin, size_t end) {
        if (c == '\t' || c == '\n' || c == '\r') {
          to.put(" ", begin);
        } else if (c != 0 && c != 0xFFFD && !is_control_or_format(c)) {
          is_space(c) ? to.put(" ", begin) : to.keep(begin, end);
        }
      });
      break;
    case Kind::kSeparateIdeographs:
      each([&](uint32_t c, size_t begin, size_t end) {
        const bool is_ideograph = is_cjk_ideograph(c);
        if (is_ideograph) to.put(" ", begin);
        to.keep(begin, end);
        if (is_ideograph) to.put(" ", begin);
      });
      break;
    case Kind::kNmt:
      each([&](uint32_t c, size_t begin, size_t end) {
        if (is_dropped_by_nmt(c)) return;
        is_space_to_nmt(c) ? to.put(" ", begin) : to.keep(begin, end);
      });
      break;
    case Kind::kByteLevel:
      for (size_t i = 0; i < text.size(); ++i)
        to.put(byte_level_text(static_cast<unsigned char>(text[i])), i);
      break;
    case Kind::kCharsmap:
      apply_charsmap(*step.charsmap, text, to);
      break;
  }
}

}  // namespace lowbit
