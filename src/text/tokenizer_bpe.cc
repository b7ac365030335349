// Byte pair encoding (Sennrich et al., https://arxiv.org/abs/1508.07909): a word begins as its characters,
// then the adjacent pair whose merge was learned first is joined, the leftmost one among equals, until none
// is left.
#include "base/fail.h"
#include "text/tokenizer_model.h"
#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <queue>

namespace lowbit {
namespace {

struct Merge {
  int32_t rank = -1;  // -1: this pair is never merged
  int32_t id = -1;    // of the joined token
};

// Pairs of ids to their merge: open addressing, at most half full.
class MergeTable {
 public:
  void reserve(size_t count) {
    size_t slots = 16;
    while (slots < count * 2) slots *= 2;
    slots_.assign(slots, {});
  }

  // A pair that comes twice counts where it comes last. `reserve` made room.
  void set(int32_t left, int32_t right, Merge merge) {
    Slot& slot = slots_[slot_of(key_of(left, right))];
    slot.key = key_of(left, right);
    slot.merge = merge;
  }

  Merge find(int32_t left, int32_t right) const { return slots_[slot_of(key_of(left, right))].merge; }

 private:
  struct Slot {
    uint64_t key = kFree;
    Merge merge;
  };
  static constexpr uint64_t kFree = ~uint64_t{0};

  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  size_t slot_of(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    const uint64_t mixed = (key ^ key >> 29) * 0x9E3779B97F4A7C15u;
    size_t slot = (mixed ^ mixed >> 32) & mask;
    while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<Slot> slots_;
};

struct Symbol {
  int32_t id;
  int32_t previous, next;  // positions, -1 at the ends
  bool is_merged;          // into the symbol before it
};

struct Candidate {
  int32_t rank;
  int32_t position;  // of the left symbol
  int32_t id;        // of the joined token
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

class BpeModel : public TokenizerModel {
 public:
  explicit BpeModel(Json& model);
  void encode(std::string_view text, std::span<const TextRange> pieces,
              std::vector<int32_t>& ids) const override;

 private:
  static constexpr uint32_t kDirectCharacters = 0x800;
  static constexpr size_t kMaxSpacedMerge = 1024;  // bytes

  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;  // a min-heap
    std::string text;
  };

  void read_merges(Json& merges);
  size_t find_separator(std::string_view merge) const;
  void add_merge(std::string_view left, std::string_view right, int32_t rank, std::string& joined);
  void split_into_symbols(std::string_view word, Scratch& scratch) const;
  int32_t find_character(std::string_view word, size_t begin, size_t end, uint32_t code_point,
                         std::string& scratch) const;
  void merge_symbols(Scratch& scratch) const;
  void propose(Scratch& scratch, int32_t left, int32_t right) const;

  MergeTable merges_;
  std::array<int32_t, kDirectCharacters> id_of_character_;  // -1: no token of this one character
  std::array<int32_t, 256> id_of_byte_;                     // "<0x00>" to "<0xFF>", -1: no such token
  std::string prefix_, suffix_;                             // continuing_subword_prefix, end_of_word_suffix
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

bool flag(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value != nullptr && !value->is_null() && value->as_bool();
}

std::string text_or_empty(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? std::string() : value->as_string();
}

BpeModel::BpeModel(Json& model) {
  const Json* dropout = model.find("dropout");
  if (dropout != nullptr && !dropout->is_null() && dropout->as_number() != 0) {
    fail(ErrorCode::kUnsupported, "BPE with dropout {} is not supported: set \"dropout\" to null",
         dropout->as_number());
  }
  Json* vocab = model.find("vocab");
  if (vocab == nullptr) fail(ErrorCode::kCorruptFile, "the key \"vocab\" is missing");
  vocabulary_ = Vocabulary::from_json(*vocab);
  prefix_ = text_or_empty(model, "continuing_subword_prefix");
  suffix_ = text_or_empty(model, "end_of_word_suffix");
  unk_token_ = text_or_empty(model, "unk_token");
  fuse_unk_ = flag(model, "fuse_unk");
  byte_fallback_ = flag(model, "byte_fallback");
  ignore_merges_ = flag(model, "ignore_merges");
  if (!unk_token_.empty()) {
    unk_id_ = vocabulary_.find(unk_token_);
    if (unk_id_ < 0)
      fail(ErrorCode::kCorruptFile, "the unk_token \"{}\" is not in the vocabulary",
           unk_token_.substr(0, 100));
  }
  for (uint32_t c = 0; c < kDirectCharacters; ++c) id_of_character_[c] = vocabulary_.find(to_utf8(c));
  for (int byte = 0; byte < 256; ++byte)
    id_of_byte_[static_cast<size_t>(byte)] = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
  Json* merges = model.find("merges");
  if (merges == nullptr) fail(ErrorCode::kCorruptFile, "the key \"merges\" is missing");
  read_merges(*merges);
}

void BpeModel::read_merges(Json& merges) {
  const Json::Array& list = merges.as_array();
  merges_.reserve(list.size());
  std::string joined;
  int32_t rank = 0;
  for (const Json& merge : list) {
    if (merge.is_array()) {
      if (merge.size() != 2)
        fail(ErrorCode::kCorruptFile, "merge {} has {} parts, expected 2", rank, merge.size());
      add_merge(merge.as_array()[0].as_string(), merge.as_array()[1].as_string(), rank, joined);
    } else {
      const std::string_view text = merge.as_string();
      if (text.starts_with("#version")) continue;
      const size_t space = find_separator(text);
      if (space == text.npos) {
        fail(ErrorCode::kCorruptFile, "merge {} is \"{}\", expected two tokens with one space between", rank,
             text.substr(0, 100));
      }
      add_merge(text.substr(0, space), text.substr(space + 1), rank, joined);
    }
    ++rank;
  }
}

// The space between the two tokens of a merge. Tokens may contain spaces in files that write merges as
// strings; then the one way to cut that gives three known tokens counts. npos: there is none, or more than
// one.
size_t BpeModel::find_separator(std::string_view merge) const {
  const size_t first = merge.find(' ');
  if (first == merge.npos || merge.find(' ', first + 1) == merge.npos) return first;
  if (merge.size() > kMaxSpacedMerge) return merge.npos;
  size_t found = merge.npos;
  for (size_t at = first; at != merge.npos; at = merge.find(' ', at + 1)) {
    const std::string left(merge.substr(0, at)), right(merge.substr(at + 1));
    if (!right.starts_with(prefix_) || vocabulary_.find(left) < 0 || vocabulary_.find(right) < 0) continue;
    if (vocabulary_.find(left + right.substr(prefix_.size())) < 0) continue;
    if (found != merge.npos) return merge.npos;
    found = at;
  }
  return found;
}

void BpeModel::add_merge(std::string_view left, std::string_view right, int32_t rank, std::string& joined) {
  const auto id_of = [&](std::string_view token) {
    const int32_t id = vocabulary_.find(token);
    if (id < 0) {
      fail(ErrorCode::kCorruptFile,
           "merge {} (\"{}\" and \"{}\") needs the token \"{}\", which is not in the vocabulary", rank,
           left.substr(0, 100), right.substr(0, 100), token.substr(0, 100));
    }
    return id;
  };
  const int32_t left_id = id_of(left), right_id = id_of(right);
  if (!right.starts_with(prefix_)) {
    fail(ErrorCode::kCorruptFile, "merge {} joins \"{}\", which lacks the continuing_subword_prefix \"{}\"",
         rank, right.substr(0, 100), prefix_.substr(0, 100));
  }
  joined.assign(left);
  joined += right.substr(prefix_.size());
  merges_.set(left_id, right_id, {rank, id_of(joined)});
}

void BpeModel::encode(std::string_view text, std::span<const TextRange> pieces,
                      std::vector<int32_t>& ids) const {
  Scratch scratch;
  for (const TextRange& piece : pieces) {
    const std::string_view word = text.substr(piece.begin, piece.end - piece.begin);
    if (ignore_merges_) {
      const int32_t id = vocabulary_.find(word);
      if (id >= 0) {
        ids.push_back(id);
        continue;
      }
    }
    split_into_symbols(word, scratch);
    merge_symbols(scratch);
    for (const Symbol& symbol : scratch.symbols) {
      if (!symbol.is_merged) ids.push_back(symbol.id);
    }
  }
}

int32_t BpeModel::find_character(std::string_view word, size_t begin, size_t end, uint32_t code_point,
                                 std::string& scratch) const {
  const bool has_prefix = begin > 0 && !prefix_.empty();
  const bool has_suffix = end == word.size() && !suffix_.empty();
  if (!has_prefix && !has_suffix) {
    return code_point < kDirectCharacters ? id_of_character_[code_point]
                                          : vocabulary_.find(word.substr(begin, end - begin));
  }
  scratch.clear();
  if (has_prefix) scratch += prefix_;
  scratch += word.substr(begin, end - begin);
  if (has_suffix) scratch += suffix_;
  return vocabulary_.find(scratch);
}

void BpeModel::split_into_symbols(std::string_view word, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.clear();
  const auto add = [&](int32_t id) {
    const auto position = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, position - 1, position + 1, false});
  };
  // An unknown character waits: whether it joins the next one is known only there. As in HF tokenizers, bytes
  // that fall back do not end the wait.
  bool unk_waits = false;
  for (size_t begin = 0; begin < word.size();) {
    const CodePoint c = decode_utf8(word, begin);
    const size_t end = begin + c.length;
    const int32_t id = find_character(word, begin, end, c.value, scratch.text);
    if (id >= 0) {
      if (unk_waits) add(unk_id_);
      unk_waits = false;
      add(id);
    } else {
      const std::string_view character = word.substr(begin, end - begin);
      const auto has_byte = [&](char byte) { return id_of_byte_[static_cast<unsigned char>(byte)] >= 0; };
      if (byte_fallback_ && std::all_of(character.begin(), character.end(), has_byte)) {
        for (char byte : character) add(id_of_byte_[static_cast<unsigned char>(byte)]);
      } else if (unk_id_ >= 0) {
        if (unk_waits && !fuse_unk_) add(unk_id_);
        unk_waits = true;
      }
    }
    begin = end;
  }
  if (unk_waits) add(unk_id_);
  if (!symbols.empty()) symbols.back().next = -1;
}

void BpeModel::propose(Scratch& scratch, int32_t left, int32_t right) const {
  const Merge merge = merges_.find(scratch.symbols[static_cast<size_t>(left)].id,
                                   scratch.symbols[static_cast<size_t>(right)].id);
  if (merge.rank < 0) return;
  scratch.queue.push_back({merge.rank, left, merge.id});
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
}

// O(n log n): each merge removes one symbol and proposes at most two pairs.
void BpeModel::merge_symbols(Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& queue = scratch.queue;
  queue.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    const Merge merge = merges_.find(symbols[i].id, symbols[i + 1].id);
    if (merge.rank >= 0) queue.push_back({merge.rank, static_cast<int32_t>(i), merge.id});
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  while (!queue.empty()) {
    const Candidate best = queue.front();
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    queue.pop_back();
    Symbol& left = symbols[static_cast<size_t>(best.position)];
    if (left.is_merged || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (merges_.find(left.id, right.id).id != best.id) continue;  // one of the two has grown since
    left.id = best.id;
    right.is_merged = true;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.position;
    if (left.previous >= 0) propose(scratch, left.previous, best.position);
    if (left.next >= 0) propose(scratch, best.position, left.next);
  }
}

}  // namespace

std::unique_ptr<const TokenizerModel> bpe_from_json(Json& model) { return std::make_unique<BpeModel>(model); }

}  // namespace lowbit
