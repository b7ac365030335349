// Where the Unicode tables of the reference (HF tokenizers 0.23: Oniguruma with Unicode 16, Rust with 17, a
// normalization crate with 11) differ from utf8proc 2.8 (Unicode 14 to 15), and a model was trained with the
// former.
#pragma once

#include <cstdint>

namespace lowbit {

// Letters, numbers and marks that utf8proc does not know yet.
bool is_newer_letter(uint32_t c);
bool is_newer_number(uint32_t c);
bool is_newer_mark(uint32_t c);

// Characters that were given a decomposition after the reference's tables were made.
bool is_newer_decomposition(uint32_t c);
// Marks that its normal forms take for characters that do not combine.
bool is_newer_combining(uint32_t c);

// Where BERT's classes in the reference, of Unicode 8 to 11, say the opposite of utf8proc's categories.
bool differs_as_punctuation(uint32_t c);
bool differs_as_mark_of_bert(uint32_t c);
bool differs_as_accent(uint32_t c);
bool differs_as_control(uint32_t c);

}  // namespace lowbit
