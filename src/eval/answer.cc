#include "eval/answer.h"

#include "lowbit/error.h"

#include <string>

namespace lowbit {
namespace {

constexpr std::string_view kPositive[] = {"true", "yes",  "1",    "fraud",      "是",
                                          "有",   "诈骗", "欺诈", "有诈骗风险", "存在诈骗风险"};
constexpr std::string_view kNegative[] = {
    "false", "no",     "0",      "not fraud",  "not_fraud",    "non-fraud",     "否", "无", "不是",
    "没有",  "非诈骗", "非欺诈", "无诈骗风险", "没有诈骗风险", "不存在诈骗风险"};
constexpr std::string_view kAround[] = {" ", "\t", "\n", "\r", "\"", "'",  "`", "*",
                                        ".", ",",  "!",  "。", "，", "！", "“", "”"};

// Strips every leading and trailing occurrence of the marks of kAround.
std::string_view strip(std::string_view text) {
  for (bool changed = true; changed;) {
    changed = false;
    for (std::string_view mark : kAround) {
      while (text.substr(0, mark.size()) == mark) text.remove_prefix(mark.size()), changed = true;
      while (text.size() >= mark.size() && text.substr(text.size() - mark.size()) == mark) {
        text.remove_suffix(mark.size());
        changed = true;
      }
    }
  }
  return text;
}

bool is_word_byte(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80);
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// The inside of the first fenced block, without its language word; the text itself when there is none.
std::string_view unwrap_fence(std::string_view text) {
  const size_t open = text.find("```");
  if (open == text.npos) return text;
  std::string_view inside = text.substr(open + 3);
  if (const size_t close = inside.find("```"); close != inside.npos) inside = inside.substr(0, close);
  size_t word = 0;
  while (word < inside.size() && (is_word_byte(inside[word]) || inside[word] == '-')) ++word;
  const std::string_view language = inside.substr(0, word);
  // "```true```" has no language word.
  if (!label_of_word(language) && word < inside.size() && is_space(inside[word])) inside.remove_prefix(word);
  return inside;
}

// One past the brace that closes the object at `begin`, braces in strings aside; npos when it never closes.
size_t object_end(std::string_view text, size_t begin) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = begin; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{') {
      ++depth;
    } else if (c == '}' && --depth == 0) {
      return i + 1;
    }
  }
  return text.npos;
}

// none: no such object. An inner none: the object is there, its value is no label.
std::optional<std::optional<bool>> label_in_object(std::string_view text, std::string_view key) {
  size_t at = text.find('{');
  for (int tries = 0; at != text.npos && tries < 1000; ++tries) {
    size_t next = at + 1;
    if (const size_t end = object_end(text, at); end != text.npos) {
      try {
        const Json object = parse_json(text.substr(at, end - at), "answer",
                                       {.allow_duplicate_keys = true, .allow_nan = true});
        if (const Json* value = object.find(key)) return label_of(*value);
        next = end;
      } catch (const Error&) {
      }
    }
    at = text.find('{', next);
  }
  return std::nullopt;
}

// The label behind `key` and a colon or an equals sign.
std::optional<bool> label_behind_key(std::string_view text, std::string_view key) {
  if (key.empty()) return std::nullopt;
  for (size_t at = text.find(key); at != text.npos; at = text.find(key, at + 1)) {
    if (at > 0 && is_word_byte(text[at - 1])) continue;
    size_t i = at + key.size();
    if (i < text.size() && (text[i] == '"' || text[i] == '\'' || text[i] == '`')) ++i;
    while (i < text.size() && is_space(text[i])) ++i;
    if (text.substr(i, 3) == "：") {
      i += 3;
    } else if (i < text.size() && (text[i] == ':' || text[i] == '=')) {
      ++i;
    } else {
      continue;
    }
    while (i < text.size() && is_space(text[i])) ++i;
    size_t end = i;
    if (end < text.size() && (text[end] == '"' || text[end] == '\'')) {
      end = std::min(text.find(text[i], i + 1), text.size());
    } else {
      while (end < text.size() && text[end] != ',' && text[end] != '}' && !is_space(text[end])) ++end;
    }
    if (std::optional<bool> label = label_of_word(text.substr(i, end - i))) return label;
  }
  return std::nullopt;
}

}  // namespace

std::optional<bool> label_of_word(std::string_view word) {
  std::string lower;
  for (char c : strip(word)) lower += (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  for (std::string_view label : kPositive) {
    if (lower == label) return true;
  }
  for (std::string_view label : kNegative) {
    if (lower == label) return false;
  }
  return std::nullopt;
}

std::optional<bool> label_of(const Json& value) {
  if (value.is_bool()) return value.as_bool();
  if (value.is_string()) return label_of_word(value.as_string());
  if (value.is_integer() && (value.as_integer() == 0 || value.as_integer() == 1))
    return value.as_integer() == 1;
  return std::nullopt;
}

std::optional<bool> parse_answer(std::string_view answer, std::string_view label_key) {
  const std::string_view text = unwrap_fence(answer);
  if (const auto found = label_in_object(text, label_key)) return *found;
  if (const auto label = label_behind_key(text, label_key)) return label;
  if (const auto label = label_of_word(text)) return label;
  const std::string_view stripped = strip(text);
  return label_of_word(stripped.substr(0, stripped.find('\n')));
}

}  // namespace lowbit
