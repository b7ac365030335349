// Results of commands that no room below makes into JSON. Text that is not UTF-8 gets U+FFFD for each stray
// byte.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace lowbit::cli {

std::string json_string(std::string_view text);

class JsonObject {
 public:
  JsonObject& add(std::string_view key, std::string_view text) { return add_raw(key, json_string(text)); }
  JsonObject& add(std::string_view key, const char* text) { return add(key, std::string_view(text)); }
  JsonObject& add(std::string_view key, int64_t number);
  JsonObject& add(std::string_view key, uint64_t number);
  JsonObject& add(std::string_view key, double number);  // null when not finite
  JsonObject& add(std::string_view key, bool value) { return add_raw(key, value ? "true" : "false"); }
  JsonObject& add(std::string_view key, std::span<const int32_t> numbers);
  JsonObject& add(std::string_view key, std::span<const std::string> texts);
  JsonObject& add_raw(std::string_view key, std::string_view json);
  std::string text() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

}  // namespace lowbit::cli
