// Words of codes, from rows of a file to where layers have them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lowbit {

// Rows of a matrix, counted from their first one, among all of it.
struct RowsOf {
  int64_t first, count, all;
};

// Their words as layers hold them (format/weight.h): to[word * all + row] = word_of(row, word) for the words
// [0, words) of each row. By tiles, each read along the rows and written along the words: what lies a power
// of two apart falls into the same few lines of a cache.
template <class WordOf>
void place_words(const RowsOf& rows, int64_t words, uint32_t* to, const WordOf& word_of) {
  constexpr int64_t kTile = 64;
  uint32_t tile[kTile][kTile];
  for (int64_t first_row = 0; first_row < rows.count; first_row += kTile) {
    const int64_t row_count = std::min(kTile, rows.count - first_row);
    for (int64_t first_word = 0; first_word < words; first_word += kTile) {
      const int64_t word_count = std::min(kTile, words - first_word);
      for (int64_t row = 0; row < row_count; ++row) {
        for (int64_t word = 0; word < word_count; ++word)
          tile[word][row] = word_of(first_row + row, first_word + word);
      }
      for (int64_t word = 0; word < word_count; ++word)
        std::copy_n(tile[word], row_count, to + (first_word + word) * rows.all + rows.first + first_row);
    }
  }
}

}  // namespace lowbit
