// Reads keys of config.json one by one. Errors (kCorruptFile, kUnsupported) name the key, what was found and
// what was expected. A key that is null is as one that is not there.
#pragma once

#include "base/json.h"
#include "ops/elementwise_args.h"

#include <string>
#include <string_view>

namespace lowbit {

class ConfigReader {
 public:
  explicit ConfigReader(const Json& config);  // which must be an object and outlive this

  const Json& json() const { return config_; }
  bool has(std::string_view key) const;
  // The first of both keys if it is there, else the second: what older files call it.
  std::string_view either(std::string_view key, std::string_view older) const {
    return has(key) ? key : older;
  }

  int64_t integer(std::string_view key, int64_t least, int64_t most) const;
  int64_t integer_or(std::string_view key, int64_t least, int64_t most, int64_t otherwise) const;
  double number_or(std::string_view key, double least, double most, double otherwise) const;
  bool flag_or(std::string_view key, bool otherwise) const;
  std::string string_or(std::string_view key, const std::string& otherwise) const;
  Json::Array array(std::string_view key) const;
  Activation activation_or(std::string_view key, const char* otherwise) const;

  // kUnsupported unless the flag, or `expected` where it is absent, is that.
  void require(std::string_view key, bool expected) const;
  // kUnsupported when the key is there.
  void refuse(std::string_view key) const;

 private:
  std::string model_type() const { return string_or("model_type", ""); }

  const Json& config_;
};

}  // namespace lowbit
