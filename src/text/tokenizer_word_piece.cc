// WordPiece as BERT uses it: a word is cut into the longest tokens from left to right; all but the first
// carry the prefix "##". A word that cannot be cut completely is unknown as a whole.
#include "base/fail.h"
#include "text/tokenizer_model.h"
#include "text/unicode.h"

namespace lowbit {
namespace {

class WordPieceModel : public TokenizerModel {
 public:
  explicit WordPieceModel(Json& model);
  void encode(std::string_view text, std::span<const TextRange> pieces,
              std::vector<int32_t>& ids) const override;

 private:
  bool encode_word(std::string_view word, std::vector<int32_t>& ids, std::string& scratch) const;

  std::string prefix_ = "##";
  int64_t max_characters_ = 100;
  int32_t unk_id_ = -1;
};

WordPieceModel::WordPieceModel(Json& model) {
  Json* vocab = model.find("vocab");
  if (vocab == nullptr) fail(ErrorCode::kCorruptFile, "the key \"vocab\" is missing");
  vocabulary_ = Vocabulary::from_json(*vocab);
  unk_token_ = "[UNK]";
  if (const Json* unk = model.find("unk_token")) unk_token_ = unk->as_string();
  if (const Json* prefix = model.find("continuing_subword_prefix")) prefix_ = prefix->as_string();
  if (const Json* characters = model.find("max_input_chars_per_word"))
    max_characters_ = characters->as_integer();
  unk_id_ = vocabulary_.find(unk_token_);
  if (unk_id_ < 0)
    fail(ErrorCode::kCorruptFile, "the unk_token \"{}\" is not in the vocabulary", unk_token_.substr(0, 100));
}

void WordPieceModel::encode(std::string_view text, std::span<const TextRange> pieces,
                            std::vector<int32_t>& ids) const {
  std::string scratch;
  for (const TextRange& piece : pieces) {
    const size_t before = ids.size();
    if (!encode_word(text.substr(piece.begin, piece.end - piece.begin), ids, scratch)) {
      ids.resize(before);
      ids.push_back(unk_id_);
    }
  }
}

bool WordPieceModel::encode_word(std::string_view word, std::vector<int32_t>& ids,
                                 std::string& scratch) const {
  int64_t characters = 0;
  for (char c : word) characters += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  if (characters > max_characters_) return false;
  for (size_t begin = 0; begin < word.size();) {
    scratch.clear();
    if (begin > 0) scratch += prefix_;
    const size_t prefix = scratch.size();
    // No token is longer than the longest one, so the work for a word is linear in its length.
    if (prefix >= vocabulary_.longest_token()) return false;
    size_t end = std::min(word.size(), begin + vocabulary_.longest_token() - prefix);
    while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) --end;
    scratch += word.substr(begin, end - begin);
    int32_t id = -1;
    while (end > begin) {
      id = vocabulary_.find(scratch);
      if (id >= 0) break;
      const size_t shorter = decode_utf8_before(word, end).length;
      end -= shorter;
      scratch.resize(scratch.size() - shorter);
    }
    if (id < 0) return false;
    ids.push_back(id);
    begin = end;
  }
  return true;
}

}  // namespace

std::unique_ptr<const TokenizerModel> word_piece_from_json(Json& model) {
  return std::make_unique<WordPieceModel>(model);
}

}  // namespace lowbit
