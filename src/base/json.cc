#include "base/json.h"

#include "base/fail.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace lowbit {
namespace {

// nlohmann does the lexing; this builds our value and adds the checks that its DOM leaves out.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view where, const JsonParseOptions& options) : where_(where), options_(options) {}

  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(number_integer_t value) override { return add(Json(int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(uint64_t{value})); }
  bool number_float(number_float_t value, const string_t&) override { return add(Json(value)); }
  bool string(string_t& value) override { return add(Json(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    if (!options_.allow_duplicate_keys && !levels_.back().keys.insert(value).second) {
      fail(ErrorCode::kCorruptFile, "{}: the key \"{}\" appears twice in one object", where_,
           value.substr(0, 200));
    }
    levels_.back().key = std::move(value);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    std::string what = error.what();
    if (size_t at = what.find("syntax error"); at != std::string::npos) what = what.substr(at);
    if (what.size() > 300) what = what.substr(0, 300) + "...";
    fail(ErrorCode::kCorruptFile, "{}: not valid JSON at byte {}: {}", where_, position, what);
  }

  Json take() { return std::move(root_); }

 private:
  struct Level {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool open(Json value) {
    if (levels_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      fail(ErrorCode::kCorruptFile, "{}: JSON is nested deeper than {} levels", where_, kMaxJsonDepth);
    }
    levels_.push_back({std::move(value), {}, {}});
    return true;
  }

  bool close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    return add(std::move(value));
  }

  bool add(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (Level& level = levels_.back(); level.value.is_array()) {
      level.value.as_array().push_back(std::move(value));
    } else if (options_.allow_duplicate_keys) {
      level.value.set(level.key, std::move(value));
    } else {
      level.value.as_object().emplace_back(std::move(level.key), std::move(value));
    }
    return true;
  }

  std::string where_;
  JsonParseOptions options_;
  std::vector<Level> levels_;
  Json root_;
};

// Python's json.dump writes NaN and Infinity, which JSON does not know.
std::string replace_nan(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (in_string) {
      out += c;
      if (c == '\\' && i + 1 < text.size()) out += text[++i];
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    bool replaced = false;
    for (std::string_view word :
         {std::string_view("-Infinity"), std::string_view("Infinity"), std::string_view("NaN")}) {
      if (text.substr(i, word.size()) == word) {
        out += "null";
        i += word.size() - 1;
        replaced = true;
        break;
      }
    }
    if (!replaced) out += c;
  }
  return out;
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (unsigned char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (c < 0x20) {
          out += fmt::format("\\u{:04x}", c);
        } else {
          out += static_cast<char>(c);
        }
    }
  }
  out += '"';
}

void append_number(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  std::string text = fmt::format("{}", value);  // the shortest text that reads back to the same double
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  out += text;
}

void append(std::string& out, const Json& json, int indent, int depth) {
  auto new_line = [&](int level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent * level), ' ');
  };
  if (json.is_null()) {
    out += "null";
  } else if (json.is_bool()) {
    out += json.as_bool() ? "true" : "false";
  } else if (json.is_integer()) {
    out += fmt::format("{}", json.as_integer());
  } else if (json.is_number()) {
    append_number(out, json.as_number());
  } else if (json.is_string()) {
    append_string(out, json.as_string());
  } else {
    const bool is_array = json.is_array();
    out += is_array ? '[' : '{';
    bool first = true;
    auto separate = [&] {
      if (!first) out += indent < 0 ? ", " : ",";
      first = false;
      new_line(depth + 1);
    };
    if (is_array) {
      for (const Json& element : json.as_array()) {
        separate();
        append(out, element, indent, depth + 1);
      }
    } else {
      for (const auto& [key, value] : json.as_object()) {
        separate();
        append_string(out, key);
        out += ": ";
        append(out, value, indent, depth + 1);
      }
    }
    if (!first) new_line(depth);
    out += is_array ? ']' : '}';
  }
}

[[noreturn]] void wrong_type(const char* expected, const Json& found) {
  fail(ErrorCode::kCorruptFile, "expected {}, found {}", expected, found.type_name());
}

}  // namespace

Json::Json(uint64_t value) {
  if (value <= static_cast<uint64_t>(INT64_MAX)) {
    value_ = static_cast<int64_t>(value);
  } else {
    value_ = static_cast<double>(value);
  }
}

const char* Json::type_name() const {
  static const char* const kNames[] = {"null",     "a boolean", "an integer", "a number",
                                       "a string", "an array",  "an object"};
  return kNames[value_.index()];
}

bool Json::as_bool() const {
  if (const bool* value = std::get_if<bool>(&value_)) return *value;
  wrong_type("a boolean", *this);
}

int64_t Json::as_integer() const {
  if (const int64_t* value = std::get_if<int64_t>(&value_)) return *value;
  if (const double* value = std::get_if<double>(&value_)) {
    if (std::abs(*value) < 9e15 && *value == std::floor(*value)) return static_cast<int64_t>(*value);
  }
  wrong_type("an integer", *this);
}

double Json::as_number() const {
  if (const int64_t* value = std::get_if<int64_t>(&value_)) return static_cast<double>(*value);
  if (const double* value = std::get_if<double>(&value_)) return *value;
  wrong_type("a number", *this);
}

const std::string& Json::as_string() const {
  if (const std::string* value = std::get_if<std::string>(&value_)) return *value;
  wrong_type("a string", *this);
}

const Json::Array& Json::as_array() const {
  if (const Array* value = std::get_if<Array>(&value_)) return *value;
  wrong_type("an array", *this);
}

Json::Array& Json::as_array() { return const_cast<Array&>(std::as_const(*this).as_array()); }

const Json::Object& Json::as_object() const {
  if (const Object* value = std::get_if<Object>(&value_)) return *value;
  wrong_type("an object", *this);
}

Json::Object& Json::as_object() { return const_cast<Object&>(std::as_const(*this).as_object()); }

const Json* Json::find(std::string_view key) const {
  if (const Object* object = std::get_if<Object>(&value_)) {
    for (const auto& [name, value] : *object) {
      if (name == key) return &value;
    }
  }
  return nullptr;
}

Json* Json::find(std::string_view key) { return const_cast<Json*>(std::as_const(*this).find(key)); }

const Json& Json::get(std::string_view key) const {
  if (!is_object()) wrong_type("an object", *this);
  if (const Json* value = find(key)) return *value;
  fail(ErrorCode::kCorruptFile, "the key \"{}\" is missing", key);
}

void Json::set(std::string_view key, Json value) {
  if (is_null()) value_ = Object{};
  if (Json* existing = find(key)) {
    *existing = std::move(value);
  } else {
    as_object().emplace_back(std::string(key), std::move(value));
  }
}

bool Json::erase(std::string_view key) {
  return std::erase_if(as_object(), [&](const auto& member) { return member.first == key; }) > 0;
}

size_t Json::size() const {
  if (is_array()) return as_array().size();
  if (is_object()) return as_object().size();
  return 0;
}

std::string Json::dump(int indent) const {
  std::string out;
  append(out, *this, indent, 0);
  return out;
}

Json parse_json(std::string_view text, std::string_view where, const JsonParseOptions& options) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") text.remove_prefix(3);
  std::string patched;
  if (options.allow_nan && (text.find("NaN") != text.npos || text.find("Infinity") != text.npos)) {
    patched = replace_nan(text);
    text = patched;
  }
  Builder builder(where, options);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    fail(ErrorCode::kCorruptFile, "{}: not valid JSON", where);
  }
  return builder.take();
}

}  // namespace lowbit
