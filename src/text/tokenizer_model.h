// The "model" of tokenizer.json: turns one piece of text into ids.
#pragma once

#include "base/json.h"
#include "lowbit/tokenizer.h"
#include "text/vocabulary.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class TokenizerModel {
 public:
  virtual ~TokenizerModel() = default;

  // Takes vocabulary and merges out of `model`. The type is inferred where the file does not name it. Throws
  // kUnsupported naming a type or an option that is not known.
  static std::unique_ptr<const TokenizerModel> from_json(Json& model);

  // Appends the ids of each piece of `text`.
  virtual void encode(std::string_view text, std::span<const TextRange> pieces,
                      std::vector<int32_t>& ids) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  const std::string& unk_token() const { return unk_token_; }  // empty: none

 protected:
  Vocabulary vocabulary_;
  std::string unk_token_;
};

std::unique_ptr<const TokenizerModel> bpe_from_json(Json& model);
std::unique_ptr<const TokenizerModel> unigram_from_json(Json& model);
std::unique_ptr<const TokenizerModel> word_piece_from_json(Json& model);

}  // namespace lowbit
