// What a loaded tokenizer consists of. Immutable, shared by all copies of a Tokenizer and by its streams.
#pragma once

#include "text/added_tokens.h"
#include "text/tokenizer_decoder.h"
#include "text/tokenizer_model.h"
#include "text/tokenizer_normalizer.h"
#include "text/tokenizer_pre_tokenizer.h"

#include <map>

namespace lowbit {

// All post-processors of tokenizer.json come to this: what stands around one text, and around two.
struct PostProcessor {
  static constexpr int32_t kFirst = -1, kSecond = -2;  // in place of an id: the texts
  struct Piece {
    int32_t id = kFirst;
    int32_t type = 0;  // "token type" of these ids
  };
  std::vector<Piece> single = {{kFirst, 0}};
  std::vector<Piece> pair = {{kFirst, 0}, {kSecond, 1}};  // empty: it is not known what stands around two

  // Null and absent mean: nothing. Throws kUnsupported naming a type that is not known.
  static PostProcessor from_json(const Json* json, int32_t end_id);

 private:
  void add(const Json& json, int32_t end_id);
  void wrap(const std::vector<Piece>& around_one, const std::vector<Piece>& around_two);
};

struct Tokenizer::State {
  Normalizer normalizer;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const TokenizerModel> model;
  PostProcessor post_processor;
  Decoder decoder;
  std::map<int32_t, std::string> added_texts;  // added tokens by id; these go before the model's
  std::map<std::string, int32_t, std::less<>> added_ids;
  int32_t end_id = 0;
  std::optional<int32_t> bos, eos, pad, unk;

  int32_t find(std::string_view token) const;  // -1: none
  // The token's text; null when the id has none.
  const std::string* text(int32_t id) const;
};

// Reads tokenizer.json and what tokenizer_config.json and special_tokens_map.json (either may be null) add to
// it.
std::shared_ptr<const Tokenizer::State> read_tokenizer(Json tokenizer, const Json& config,
                                                       const Json& special_tokens_map,
                                                       std::string_view where);

}  // namespace lowbit
