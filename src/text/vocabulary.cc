#include "text/vocabulary.h"

#include "base/fail.h"

#include <algorithm>
#include <functional>

namespace lowbit {

Vocabulary Vocabulary::from_json(Json& vocab) {
  Vocabulary vocabulary;
  Json::Object& object = vocab.as_object();
  vocabulary.reserve(object.size());
  for (auto& [token, id] : object) {
    const int64_t value = id.as_integer();
    if (value < 0 || value > kMaxId) {
      fail(ErrorCode::kCorruptFile, "the token \"{}\" has id {}, expected 0 to {}", token.substr(0, 100),
           value, kMaxId);
    }
    vocabulary.add(std::move(token), static_cast<int32_t>(value));
  }
  return vocabulary;
}

void Vocabulary::reserve(size_t count) {
  size_t slots = 16;
  while (slots < count * 2) slots *= 2;
  if (slots <= slots_.size()) return;
  entries_.reserve(slots / 2);
  slots_.assign(slots, -1);
  for (size_t i = 0; i < entries_.size(); ++i) slots_[slot_of(entries_[i].token)] = static_cast<int32_t>(i);
}

size_t Vocabulary::slot_of(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>{}(token)&mask;
  while (slots_[slot] >= 0 && entries_[static_cast<size_t>(slots_[slot])].token != token)
    slot = (slot + 1) & mask;
  return slot;
}

void Vocabulary::add(std::string token, int32_t id) {
  if (find(token) >= 0) fail(ErrorCode::kCorruptFile, "the token \"{}\" appears twice", token.substr(0, 100));
  add_again(std::move(token), id);
}

void Vocabulary::add_again(std::string token, int32_t id) {
  reserve(entries_.size() + 1);
  const size_t slot = slot_of(token);
  if (id >= end_id()) entry_of_id_.resize(static_cast<size_t>(id) + 1, -1);
  int32_t& entry = entry_of_id_[static_cast<size_t>(id)];
  if (entry >= 0) {
    fail(ErrorCode::kCorruptFile, "the tokens \"{}\" and \"{}\" have the same id {}",
         entries_[static_cast<size_t>(entry)].token.substr(0, 100), token.substr(0, 100), id);
  }
  slots_[slot] = entry = static_cast<int32_t>(entries_.size());
  longest_token_ = std::max(longest_token_, token.size());
  entries_.push_back({std::move(token), id});
}

int32_t Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return -1;
  const int32_t entry = slots_[slot_of(token)];
  return entry < 0 ? -1 : entries_[static_cast<size_t>(entry)].id;
}

const std::string& Vocabulary::token(int32_t id) const {
  static const std::string kNone;
  return has(id) ? entries_[static_cast<size_t>(entry_of_id_[static_cast<size_t>(id)])].token : kNone;
}

}  // namespace lowbit
