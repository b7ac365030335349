// A JSON value and a strict parser for untrusted files: duplicate keys, invalid UTF-8, numbers that are not
// JSON, and nesting deeper than kMaxJsonDepth are refused. Objects keep the order of the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lowbit {

inline constexpr int kMaxJsonDepth = 64;

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  Json() = default;
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(unsigned value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(uint64_t value);  // above 2^63 - 1 becomes a double
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  static Json array() { return Json(Array{}); }
  static Json object() { return Json(Object{}); }

  bool is_null() const { return value_.index() == 0; }
  bool is_bool() const { return value_.index() == 1; }
  bool is_integer() const { return value_.index() == 2; }
  bool is_number() const { return value_.index() == 2 || value_.index() == 3; }
  bool is_string() const { return value_.index() == 4; }
  bool is_array() const { return value_.index() == 5; }
  bool is_object() const { return value_.index() == 6; }
  const char* type_name() const;

  // Each throws kCorruptFile ("expected an integer, found a string") when the value is of another type.
  bool as_bool() const;
  int64_t as_integer() const;  // also a double without a fraction
  double as_number() const;
  const std::string& as_string() const;
  const Array& as_array() const;
  Array& as_array();
  const Object& as_object() const;
  Object& as_object();

  // Object access. find: null pointer when absent (or not an object). get: throws naming the key.
  const Json* find(std::string_view key) const;
  Json* find(std::string_view key);
  const Json& get(std::string_view key) const;
  void set(std::string_view key, Json value);  // replaces or appends
  bool erase(std::string_view key);
  void push_back(Json value) { as_array().push_back(std::move(value)); }
  size_t size() const;  // elements of an array or object, 0 otherwise

  // indent < 0: one line. Non-finite numbers become null. Non-ASCII text stays UTF-8.
  std::string dump(int indent = -1) const;

  bool operator==(const Json& other) const = default;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonParseOptions {
  bool allow_duplicate_keys = false;
  bool allow_nan = false;  // Python's NaN, Infinity, -Infinity outside of strings are read as null
};

// `where` opens the error message: "config.json: line 3 column 5: ...".
Json parse_json(std::string_view text, std::string_view where, const JsonParseOptions& options = {});

}  // namespace lowbit
