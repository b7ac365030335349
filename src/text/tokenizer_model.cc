#include "text/tokenizer_model.h"

#include "base/fail.h"

namespace lowbit {
namespace {

// As HF tokenizers reads files of before 2020: by the fields that only one kind of model has.
std::string infer_type(const Json& model) {
  if (model.find("merges") != nullptr) return "BPE";
  const Json* vocab = model.find("vocab");
  if (vocab != nullptr && vocab->is_array()) return "Unigram";
  if (model.find("continuing_subword_prefix") != nullptr || model.find("max_input_chars_per_word") != nullptr)
    return "WordPiece";
  return "WordLevel";
}

}  // namespace

std::unique_ptr<const TokenizerModel> TokenizerModel::from_json(Json& model) {
  const Json* named = model.find("type");
  const std::string type = named != nullptr && !named->is_null() ? named->as_string() : infer_type(model);
  if (type == "BPE") return bpe_from_json(model);
  if (type == "Unigram") return unigram_from_json(model);
  if (type == "WordPiece") return word_piece_from_json(model);
  fail(ErrorCode::kUnsupported,
       "the tokenizer model \"{}\" is not supported (BPE, Unigram and WordPiece are)", type.substr(0, 100));
}

}  // namespace lowbit
