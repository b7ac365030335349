// Unigram (Kudo, https://arxiv.org/abs/1804.10959): every token has a score, the logarithm of its
// probability; of all ways to cut a piece into tokens the one with the largest sum counts (Viterbi). What HF
// tokenizers adds to the paper: a character that is no token costs kUnknownPenalty more than the worst token,
// and neighbouring unknown characters are one token, or their bytes.
#include "base/fail.h"
#include "text/tokenizer_model.h"
#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace lowbit {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr size_t kMaxTokenBytes = 1024;  // bounds the work per byte of text

struct NamedToken {
  std::string_view text;
  int32_t id;
};

// All tokens that a text begins with, in one walk. The children of a node lie side by side, sorted by byte.
class PrefixTree {
 public:
  // `tokens`: sorted by text, no two alike, none empty.
  void build(std::span<const NamedToken> tokens);

  // Calls visit(length, id) from the shortest token to the longest.
  template <class Visit>
  void visit_prefixes(std::string_view text, Visit visit) const {
    uint32_t node = text.empty() ? 0 : children_of_root_[static_cast<unsigned char>(text[0])];
    for (size_t length = 1; node != 0; ++length) {
      if (nodes_[node].id >= 0) visit(length, nodes_[node].id);
      node = length < text.size() ? child(node, static_cast<unsigned char>(text[length])) : 0;
    }
  }

 private:
  struct Node {
    int32_t id = -1;  // of the token that ends here, -1: none
    uint32_t first_child = 0;
    uint16_t children = 0;
    unsigned char byte = 0;  // that leads here
  };

  uint32_t child(uint32_t node, unsigned char byte) const {  // 0: there is none
    const auto begin = nodes_.begin() + nodes_[node].first_child, end = begin + nodes_[node].children;
    const auto found =
        std::lower_bound(begin, end, byte, [](const Node& n, unsigned char b) { return n.byte < b; });
    return found != end && found->byte == byte ? static_cast<uint32_t>(found - nodes_.begin()) : 0;
  }

  std::vector<Node> nodes_;  // the root first, then level by level
  std::array<uint32_t, 256> children_of_root_{};
};

void PrefixTree::build(std::span<const NamedToken> tokens) {
  struct Range {
    size_t begin, end;  // the tokens below a node
  };
  nodes_.assign(1, {});
  std::vector<Range> level = {{0, tokens.size()}}, next;
  uint32_t node = 0;
  for (size_t depth = 0; !level.empty(); ++depth) {
    next.clear();
    for (const Range& range : level) {
      nodes_[node].first_child = static_cast<uint32_t>(nodes_.size());
      size_t at = range.begin;
      if (at < range.end && tokens[at].text.size() == depth) nodes_[node].id = tokens[at++].id;
      while (at < range.end) {
        const size_t begin = at;
        const char byte = tokens[begin].text[depth];
        while (at < range.end && tokens[at].text[depth] == byte) ++at;
        nodes_.push_back({.byte = static_cast<unsigned char>(byte)});
        ++nodes_[node].children;
        next.push_back({begin, at});
      }
      ++node;
    }
    std::swap(level, next);
  }
  for (uint16_t i = 0; i < nodes_[0].children; ++i) {
    const uint32_t first = nodes_[0].first_child + i;
    children_of_root_[nodes_[first].byte] = first;
  }
}

class UnigramModel : public TokenizerModel {
 public:
  explicit UnigramModel(Json& model);
  void encode(std::string_view text, std::span<const TextRange> pieces,
              std::vector<int32_t>& ids) const override;

 private:
  // The best way to cut the text before a byte: its score, and the last token of it.
  struct Best {
    double score = 0;
    int32_t begin = -1;  // of the last token, -1: no token ends here
    int32_t id = -1;
  };
  struct Scratch {
    std::vector<Best> best;           // by the byte at which a token ends
    std::vector<TextRange> reversed;  // the tokens, the last one first
  };

  void read_vocabulary(Json& vocab);
  void read_unknown(const Json& model);
  void find_best(std::string_view word, std::vector<Best>& best) const;
  void append_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  PrefixTree tree_;
  std::vector<double> scores_;           // by id
  std::array<int32_t, 256> id_of_byte_;  // "<0x00>" to "<0xFF>", -1: no such token
  double unknown_score_ = 0;
  int32_t unk_id_ = -1;
  bool byte_fallback_ = false;
};

UnigramModel::UnigramModel(Json& model) {
  Json* vocab = model.find("vocab");
  if (vocab == nullptr) fail(ErrorCode::kCorruptFile, "the key \"vocab\" is missing");
  read_vocabulary(*vocab);
  read_unknown(model);
  const Json* byte_fallback = model.find("byte_fallback");
  byte_fallback_ = byte_fallback != nullptr && !byte_fallback->is_null() && byte_fallback->as_bool();
  for (int byte = 0; byte < 256; ++byte)
    id_of_byte_[static_cast<size_t>(byte)] = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
}

void UnigramModel::read_vocabulary(Json& vocab) {
  Json::Array& list = vocab.as_array();
  if (list.empty()) fail(ErrorCode::kCorruptFile, "\"vocab\" is empty, expected [[token, score], ...]");
  if (list.size() > static_cast<size_t>(Vocabulary::kMaxId) + 1) {
    fail(ErrorCode::kUnsupported, "\"vocab\" has {} tokens, at most {} are supported", list.size(),
         Vocabulary::kMaxId + 1);
  }
  scores_.reserve(list.size());
  for (Json& entry : list) {
    const auto id = static_cast<int32_t>(scores_.size());
    if (!entry.is_array() || entry.size() != 2)
      fail(ErrorCode::kCorruptFile, "entry {} of \"vocab\" is not a pair of token and score", id);
    std::string token = entry.as_array()[0].as_string();
    const double score = entry.as_array()[1].as_number();
    if (!std::isfinite(score)) {
      fail(ErrorCode::kCorruptFile, "the token \"{}\" (id {}) has the score {}, expected a finite number",
           token.substr(0, 100), id, score);
    }
    if (token.size() > kMaxTokenBytes) {
      fail(ErrorCode::kUnsupported, "the token with id {} has {} bytes, at most {} are supported", id,
           token.size(), kMaxTokenBytes);
    }
    scores_.push_back(score);
    vocabulary_.add_again(std::move(token), id);  // HF tokenizers: of two alike the last one is found
  }
  std::vector<NamedToken> tokens;
  tokens.reserve(scores_.size());
  for (int32_t id = 0; id < vocabulary_.end_id(); ++id) {
    const std::string& token = vocabulary_.token(id);
    if (!token.empty() && vocabulary_.find(token) == id) tokens.push_back({token, id});
  }
  std::sort(tokens.begin(), tokens.end(),
            [](const NamedToken& a, const NamedToken& b) { return a.text < b.text; });
  tree_.build(tokens);
  unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kUnknownPenalty;
}

void UnigramModel::read_unknown(const Json& model) {
  const Json* unk = model.find("unk_id");
  if (unk == nullptr || unk->is_null()) return;
  const int64_t id = unk->as_integer();
  if (id < 0 || id >= vocabulary_.end_id()) {
    fail(ErrorCode::kCorruptFile, "\"unk_id\" is {}, the vocabulary has 0 to {}", id,
         vocabulary_.end_id() - 1);
  }
  unk_id_ = static_cast<int32_t>(id);
  unk_token_ = vocabulary_.token(unk_id_);
}

void UnigramModel::encode(std::string_view text, std::span<const TextRange> pieces,
                          std::vector<int32_t>& ids) const {
  Scratch scratch;
  for (const TextRange& piece : pieces) {
    const std::string_view word = text.substr(piece.begin, piece.end - piece.begin);
    find_best(word, scratch.best);
    scratch.reversed.clear();
    bool was_unknown = false;
    for (size_t end = word.size(); end > 0;) {
      const Best& last = scratch.best[end];
      const auto begin = static_cast<size_t>(last.begin);
      const bool is_unknown = last.id == unk_id_;  // also where the text spells the unknown token
      if (is_unknown && was_unknown) {
        scratch.reversed.back().begin = begin;
      } else {
        scratch.reversed.push_back({begin, end});
      }
      was_unknown = is_unknown;
      end = begin;
    }
    for (size_t i = scratch.reversed.size(); i-- > 0;) {
      const TextRange& token = scratch.reversed[i];
      const Best& last = scratch.best[token.end];
      if (last.id == unk_id_) {
        append_unknown(word.substr(token.begin, token.end - token.begin), ids);
      } else {
        ids.push_back(last.id);
      }
    }
  }
}

void UnigramModel::find_best(std::string_view word, std::vector<Best>& best) const {
  best.assign(word.size() + 1, {});
  for (size_t begin = 0; begin < word.size();) {
    const double before = best[begin].score;
    const auto offer = [&](size_t length, double score, int32_t id) {
      Best& last = best[begin + length];
      if (last.begin < 0 || before + score > last.score)
        last = {before + score, static_cast<int32_t>(begin), id};
    };
    const size_t character = decode_utf8(word, begin).length;
    bool has_character = false;
    tree_.visit_prefixes(word.substr(begin), [&](size_t length, int32_t id) {
      offer(length, scores_[static_cast<size_t>(id)], id);
      has_character = has_character || length == character;
    });
    if (!has_character) {
      if (unk_id_ < 0) {
        fail(ErrorCode::kInvalidArgument,
             "[tokenizer] the character \"{}\" is not in the vocabulary, and tokenizer.json names no "
             "\"unk_id\"",
             word.substr(begin, character));
      }
      offer(character, unknown_score_, unk_id_);
    }
    begin += character;
  }
}

// `text`: neighbouring unknown characters.
void UnigramModel::append_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  if (const int32_t id = vocabulary_.find(text); id >= 0) return ids.push_back(id);
  const auto id_of = [&](char byte) { return id_of_byte_[static_cast<unsigned char>(byte)]; };
  if (byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char byte) { return id_of(byte) >= 0; })) {
    for (char byte : text) ids.push_back(id_of(byte));
  } else {
    ids.push_back(unk_id_);
  }
}

}  // namespace

std::unique_ptr<const TokenizerModel> unigram_from_json(Json& model) {
  return std::make_unique<UnigramModel>(model);
}

}  // namespace lowbit
