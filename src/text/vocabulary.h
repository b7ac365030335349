// The tokens of a model by id and by text.
#pragma once

#include "base/json.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class Vocabulary {
 public:
  static constexpr int32_t kMaxId = (1 << 22) - 1;

  // Takes the tokens out of the "vocab" object, token to id. Throws kCorruptFile for ids that are negative,
  // above kMaxId or used twice.
  static Vocabulary from_json(Json& vocab);

  void add(std::string token, int32_t id);  // neither the token nor the id may be there yet
  // The same, but a token that is there already is found under the new id from now on; the old one keeps its
  // text.
  void add_again(std::string token, int32_t id);

  // The id, or -1.
  int32_t find(std::string_view token) const;
  bool has(int32_t id) const {
    return id >= 0 && id < end_id() && entry_of_id_[static_cast<size_t>(id)] >= 0;
  }
  // Empty when the id has no token.
  const std::string& token(int32_t id) const;
  int32_t end_id() const { return static_cast<int32_t>(entry_of_id_.size()); }  // largest id + 1
  size_t size() const { return entries_.size(); }
  size_t longest_token() const { return longest_token_; }  // bytes

 private:
  struct Entry {
    std::string token;
    int32_t id;
  };

  size_t slot_of(std::string_view token) const;
  void reserve(size_t count);

  std::vector<Entry> entries_;
  std::vector<int32_t> entry_of_id_;  // -1: no token
  std::vector<int32_t> slots_;  // open addressing over entries_, -1: free; a power of two, at most half full
  size_t longest_token_ = 0;
};

}  // namespace lowbit
