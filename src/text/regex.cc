#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/fail.h"
#include "text/unicode.h"

#include <chrono>
#include <pcre2.h>

namespace lowbit {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
constexpr uint32_t kMatchLimit = 2'000'000;  // steps for one match
constexpr uint32_t kDepthLimit = 200'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr double kSecondsPerText = 5, kSecondsPerMegabyte = 2;

// White_Space without U+180E, which PCRE2's \s has and Oniguruma's has not.
constexpr std::string_view kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
// Oniguruma's \w: it has the superscripts and fractions of Latin-1 and lacks the joiners.
constexpr std::string_view kWords =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{"
    "1f149}\\x{1f150}-\\x{1f169}"
    "\\x{1f170}-\\x{1f189}";
constexpr std::string_view kHexDigits = "0-9a-fA-F";

[[noreturn]] void unsupported(std::string_view pattern, std::string_view why) {
  fail(ErrorCode::kUnsupported, "the regular expression \"{}\" {}", pattern.substr(0, 300), why);
}

std::string translate(std::string_view pattern) {
  std::string out;
  int class_depth = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      const std::string_view set = next == 's' || next == 'S'   ? kSpaces
                                   : next == 'w' || next == 'W' ? kWords
                                   : next == 'h' || next == 'H' ? kHexDigits
                                                                : std::string_view();
      if (set.empty()) {
        out += c;
        out += next;
      } else if (next >= 'a') {
        out += class_depth > 0 ? std::string(set) : fmt::format("[{}]", set);
      } else if (class_depth == 0) {
        out += fmt::format("[^{}]", set);
      } else if (next == 'S') {
        out += "\\S";  // differs from Oniguruma in U+180E alone
      } else {
        unsupported(pattern, "has a negated \\W or \\H inside of a character class, which is not supported");
      }
      continue;
    }
    if (class_depth > 0) {
      if (c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {  // [:name:]
        const size_t end = pattern.find(":]", i);
        if (end == pattern.npos) unsupported(pattern, "has an unterminated character class");
        out += pattern.substr(i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == '[') {
        // A class in a class is their union, so its members join the outer ones, as long as no hyphen touches
        // it.
        const char next = i + 1 < pattern.size() ? pattern[i + 1] : ']';
        if (next == '^' || next == ']' || out.back() == '-')
          unsupported(pattern, "nests a negated or empty character class, which is not supported");
        ++class_depth;
        continue;
      }
      if (c == ']' && class_depth > 1) {
        if (i + 1 < pattern.size() && pattern[i + 1] == '-')
          unsupported(pattern, "has a hyphen after a nested character class, which is not supported");
        --class_depth;
        continue;
      }
      if (pattern.substr(i, 2) == "&&")
        unsupported(pattern, "intersects character classes (&&), which is not supported");
      if (c == ']') --class_depth;
    } else if (c == '[') {
      ++class_depth;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      continue;
    } else if (pattern.substr(i, 3) == "(?m") {
      unsupported(pattern, "uses the option (?m), which is not supported");
    }
    out += c;
  }
  return out;
}

}  // namespace

Regex::Regex(std::string_view pattern) : pattern_(pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    fail(ErrorCode::kUnsupported, "a regular expression has {} bytes, at most {} are supported",
         pattern.size(), kMaxPatternBytes);
  }
  const std::string translated = translate(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Oniguruma's ^ and $ match at every line.
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                   &offset, nullptr);
  if (code == nullptr) {
    char message[256] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    unsupported(pattern,
                fmt::format("cannot be compiled: {} (at byte {} of its translation)", message, offset));
  }
  code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
}

void Regex::find_all(std::string_view text, std::vector<TextRange>& matches) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::shared_ptr<pcre2_match_data> data(pcre2_match_data_create_from_pattern(code, nullptr),
                                               pcre2_match_data_free);
  const std::shared_ptr<pcre2_match_context> context(pcre2_match_context_create(nullptr),
                                                     pcre2_match_context_free);
  if (!data || !context) fail(ErrorCode::kOutOfMemory, "no memory to match a regular expression");
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);

  using Clock = std::chrono::steady_clock;
  const double seconds = kSecondsPerText + kSecondsPerMegabyte * static_cast<double>(text.size()) / 1e6;
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  bool has_match = false;
  size_t at = 0, last_end = 0;
  // One anchored attempt per start: PCRE2's limits hold for one start, so only the caller can bound their
  // sum.
  while (at <= text.size()) {
    if (Clock::now() > deadline) {
      unsupported(pattern_,
                  fmt::format("takes longer than {:.0f} s on a text of {} bytes", seconds, text.size()));
    }
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (count < 0 && count != PCRE2_ERROR_NOMATCH) {
      unsupported(pattern_,
                  fmt::format("needs too many steps on this text (PCRE2 error {} at byte {})", count, at));
    }
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(data.get());
    const bool is_match = count > 0 && ovector[1] >= ovector[0] && ovector[0] == at;
    if (is_match && !(ovector[0] == ovector[1] && has_match && ovector[1] == last_end)) {
      matches.push_back({ovector[0], ovector[1]});
      has_match = true;
      last_end = ovector[1];
      at = last_end;
      if (ovector[1] > ovector[0]) continue;
    }
    if (at >= text.size()) break;
    at += decode_utf8(text, at).length;
  }
}

}  // namespace lowbit
