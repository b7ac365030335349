// What a loaded tokenizer consists of. Immutable, shared by all copies of a Tokenizer and by its streams.
#pragma once

#include "text/added_tokens.h"
#include "text/tokenizer_decoder.h"
#include "text/tokenizer_model.h"
#include "text/tokenizer_normalizer.h"
#include "text/tokenizer_pre_tokenizer.h"

#include <map>

namespace lowbit {

// All post-processors of tokenizer.json come to this: ids before and after the text.
struct PostProcessor {
  std::vector<int32_t> before, after;

  // Null and absent mean: nothing. Throws kUnsupported naming a type that is not known.
  static PostProcessor from_json(const Json* json, int32_t end_id);

 private:
  void add(const Json& json, int32_t end_id);
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
