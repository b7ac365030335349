#include "report/json_text.h"

#include "report/text_table.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {
namespace {

bool is_bytes_key(std::string_view key) { return key.size() >= 5 && key.substr(key.size() - 5) == "bytes"; }

std::string cell_of(const Json& object, std::string_view key) {
  return is_bytes_key(key) ? bytes_of(object, key) : text_of(object, key);
}

}  // namespace

std::string text_of(const Json* value) {
  if (!value || value->is_null()) return "-";
  if (value->is_string()) return value->as_string();
  if (value->is_bool()) return value->as_bool() ? "yes" : "no";
  if (value->is_integer()) return count_text(value->as_integer());
  if (value->is_number()) return fmt::format("{:.5g}", value->as_number());
  if (value->is_array()) {
    std::string out;
    for (const Json& element : value->as_array()) out += (out.empty() ? "" : ", ") + text_of(&element);
    return out.empty() ? "-" : out;
  }
  std::string out;
  for (const auto& [key, member] : value->as_object()) {
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", key,
                       is_bytes_key(key) ? bytes_of(*value, key) : text_of(&member));
  }
  return out.empty() ? "-" : out;
}

std::string text_of(const Json& object, std::string_view key) { return text_of(object.find(key)); }

double number_of(const Json& object, std::string_view key, double otherwise) {
  const Json* value = object.find(key);
  return value && value->is_number() ? value->as_number() : otherwise;
}

std::string bytes_of(const Json& object, std::string_view key) {
  const double bytes = number_of(object, key, -1);
  return bytes >= 0 ? bytes_text(static_cast<uint64_t>(bytes)) : text_of(object, key);
}

const Json::Array& array_of(const Json& object, std::string_view key) {
  static const Json::Array kNone;
  const Json* value = object.find(key);
  return value && value->is_array() ? value->as_array() : kNone;
}

std::string objects_table(const Json& object, std::string_view key,
                          std::initializer_list<std::string_view> columns) {
  const Json::Array& elements = array_of(object, key);
  if (elements.empty()) return "";
  std::vector<std::string_view> present;
  const auto add_column = [&](std::string_view column) {
    if (std::find(present.begin(), present.end(), column) == present.end()) present.push_back(column);
  };
  for (std::string_view column : columns) {
    if (std::any_of(elements.begin(), elements.end(),
                    [&](const Json& element) { return element.find(column); })) {
      add_column(column);
    }
  }
  for (const Json& element : elements) {
    if (!element.is_object()) continue;
    for (const auto& [name, value] : element.as_object()) add_column(name);
  }
  if (present.empty()) return "";
  TextTable table;
  std::vector<std::string> head;
  for (size_t i = 0; i < present.size(); ++i) {
    head.emplace_back(present[i]);
    const bool is_numeric = std::all_of(elements.begin(), elements.end(), [&](const Json& element) {
      const Json* value = element.find(present[i]);
      return !value || value->is_number() || value->is_null();
    });
    if (!is_numeric) table.align_left(i);
  }
  table.add(head);
  table.add_rule();
  for (const Json& element : elements) {
    std::vector<std::string> cells;
    for (std::string_view column : present) cells.push_back(cell_of(element, column));
    table.add(std::move(cells));
  }
  return table.text();
}

std::string members_text(const Json& object, std::string_view key) {
  const Json* members = object.find(key);
  return members && members->is_object() ? remaining_text(*members, {}) : "";
}

std::string layer_pattern(std::string_view module) {
  std::string pattern;
  for (size_t i = 0; i < module.size(); ++i) {
    const bool is_digit = module[i] >= '0' && module[i] <= '9';
    const bool starts = i == 0 || module[i - 1] == '.';
    if (!is_digit || !starts) {
      pattern += module[i];
      continue;
    }
    size_t end = module.find_first_not_of("0123456789", i);
    end = std::min(end, module.size());
    const bool is_index = end == module.size() || module[end] == '.';
    pattern += is_index ? "*" : std::string(module.substr(i, end - i));
    i = end - 1;
  }
  return pattern;
}

std::string remaining_text(const Json& object, std::initializer_list<std::string_view> shown) {
  TextTable table;
  table.align_left(1);
  bool any = false;
  if (!object.is_object()) return "";
  for (const auto& [key, value] : object.as_object()) {
    if (std::find(shown.begin(), shown.end(), key) != shown.end()) continue;
    if (value.is_array() || value.is_object() || value.is_null()) continue;
    table.add({key, cell_of(object, key)});
    any = true;
  }
  return any ? table.text() : "";
}

}  // namespace lowbit
