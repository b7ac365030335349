// UTF-8 and the Unicode classes that tokenizers are defined by.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct CodePoint {
  uint32_t value = 0;
  uint32_t length = 0;  // bytes
};

// One step through bytes that may not be UTF-8: a well-formed character, or the longest ill-formed part that
// the Unicode standard replaces by one U+FFFD (table 3-7: overlong forms, surrogates and values above 10FFFF
// are ill-formed).
struct Utf8Unit {
  uint32_t length = 0;
  bool is_valid = false;
  bool is_truncated = false;  // ill-formed only because the text ends here
};
Utf8Unit next_utf8_unit(std::string_view text, size_t at);

bool is_utf8(std::string_view text);

// The character at byte `at` of text that is known to be UTF-8.
CodePoint decode_utf8(std::string_view text, size_t at);
// The character that ends at byte `end` (end > 0) of text that is known to be UTF-8.
CodePoint decode_utf8_before(std::string_view text, size_t end);
void append_utf8(std::string& out, uint32_t code_point);
std::string to_utf8(uint32_t code_point);

bool is_letter(uint32_t c);             // \p{L}
bool is_number(uint32_t c);             // \p{N}
bool is_mark(uint32_t c);               // \p{M}
bool is_accent(uint32_t c);             // what StripAccents drops: \p{M} of Unicode 11
bool is_nonspacing_mark(uint32_t c);    // what BERT drops: \p{Mn} of Unicode 8
bool is_space(uint32_t c);              // White_Space, which is \s
bool is_word(uint32_t c);               // \w of Unicode TS 18: Alphabetic, M, Nd, Pc, Join_Control
bool is_punctuation(uint32_t c);        // \p{P} of Unicode 8, or ASCII punctuation ($+<=>^`|~ too)
bool is_control_or_format(uint32_t c);  // Cc, Cf, Co: what BERT's cleaning calls control
bool is_cjk_ideograph(uint32_t c);      // BERT's blocks

// Where the extended grapheme cluster (Unicode annex 29) that begins at byte `at` ends.
size_t grapheme_end(std::string_view text, size_t at);

// Appends the full lower case of one character, without context (U+0130 gives two characters).
void append_lowercase(std::string& out, uint32_t c);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// True for characters that no normal form changes and that never combine with what stands before them. Text
// may be cut before such a character and its parts normalized one by one.
bool is_normalization_boundary(uint32_t c);

// Appends the normal form of valid UTF-8. O(n log n) for any input.
void append_normalized(std::string& out, std::string_view text, NormalForm form);

}  // namespace lowbit
