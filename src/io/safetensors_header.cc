#include "io/safetensors_header.h"

#include "base/fail.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

namespace lowbit {
namespace {

// The only shape a header may have:
//   { "__metadata__": { string: string ... }, NAME: { "dtype": string, "shape": [n ...], "data_offsets": [n,
//   n] } ... }
class HeaderBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderBuilder(std::string_view where) : where_(where) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + text);
  }
  bool number_integer(number_integer_t value) override {
    return unexpected(fmt::format("the number {}", value));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX)) return unexpected(fmt::format("the size {}", value));
      if (entry_.shape.size() == kMaxSafetensorsRank) {
        fail(ErrorCode::kUnsupported, "{}: tensor \"{}\" has more than {} dimensions", where_,
             shown(entry_.name), kMaxSafetensorsRank);
      }
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      return unexpected(fmt::format("the number {}", value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      header_.metadata.emplace_back(std::move(key_), std::move(value));
    } else if (place_ == Place::kEntry && key_ == "dtype") {
      const std::optional<DType> dtype = parse_dtype(value);
      if (!dtype) {
        fail(ErrorCode::kUnsupported, "{}: tensor \"{}\" has the dtype \"{}\", which lowbit does not read",
             where_, shown(entry_.name), shown(value));
      }
      entry_.dtype = *dtype;
    } else {
      return unexpected("a string");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      keys_in_entry_.clear();
      place_ = key_ == "__metadata__" ? Place::kMetadata : Place::kEntry;
      entry_ = {};
      entry_.name = key_;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kEntry) {
      if (keys_in_entry_.size() != 3) {
        fail(ErrorCode::kCorruptFile,
             "{}: tensor \"{}\" needs dtype, shape and data_offsets, only {} of them are there", where_,
             shown(entry_.name), keys_in_entry_.size());
      }
      if (header_.entries.size() == kMaxSafetensorsTensors) {
        fail(ErrorCode::kUnsupported, "{}: more than {} tensors in one file", where_, kMaxSafetensorsTensors);
      }
      header_.entries.push_back(std::move(entry_));
    }
    place_ = Place::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kEntry && key_ == "shape") {
      place_ = Place::kShape;
    } else if (place_ == Place::kEntry && key_ == "data_offsets") {
      place_ = Place::kOffsets;
      offsets_ = 0;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_ != 2) {
      fail(ErrorCode::kCorruptFile, "{}: data_offsets of tensor \"{}\" has {} numbers, expected 2", where_,
           shown(entry_.name), offsets_);
    }
    place_ = Place::kEntry;
    return true;
  }

  bool key(string_t& value) override {
    key_ = std::move(value);
    bool is_new = true;
    if (place_ == Place::kTop) {
      is_new = names_.insert(key_).second;
    } else if (place_ == Place::kMetadata) {
      is_new = metadata_keys_.insert(key_).second;
    } else {
      if (key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
        fail(ErrorCode::kCorruptFile, "{}: tensor \"{}\" has the unknown key \"{}\"", where_,
             shown(entry_.name), shown(key_));
      }
      is_new = std::find(keys_in_entry_.begin(), keys_in_entry_.end(), key_) == keys_in_entry_.end();
      keys_in_entry_.push_back(key_);
    }
    if (!is_new) fail(ErrorCode::kCorruptFile, "{}: \"{}\" appears twice in the header", where_, shown(key_));
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    fail(ErrorCode::kCorruptFile, "{}: the header is not valid UTF-8 JSON (at its byte {})", where_,
         position);
  }

  SafetensorsHeader take() { return std::move(header_); }

 private:
  enum class Place { kStart, kTop, kMetadata, kEntry, kShape, kOffsets };

  static std::string shown(const std::string& text) { return text.substr(0, 200); }

  bool unexpected(const std::string& what) {
    if (place_ == Place::kStart || place_ == Place::kTop) {
      fail(ErrorCode::kCorruptFile, "{}: the header holds {} where an object is expected (\"{}\")", where_,
           what, shown(key_));
    }
    if (place_ == Place::kMetadata) {
      fail(ErrorCode::kCorruptFile, "{}: __metadata__ \"{}\" is {}, expected a string", where_, shown(key_),
           what);
    }
    fail(ErrorCode::kCorruptFile, "{}: {} of tensor \"{}\" holds {}, expected {}", where_, shown(key_),
         shown(entry_.name), what, key_ == "dtype" ? "a string" : "integers from 0 to 2^63 - 1");
  }

  std::string where_;
  SafetensorsHeader header_;
  Place place_ = Place::kStart;
  std::string key_;
  SafetensorsEntry entry_;
  int offsets_ = 0;
  std::vector<std::string> keys_in_entry_;
  std::unordered_set<std::string> names_, metadata_keys_;
};

void check_layout(const SafetensorsHeader& header, uint64_t buffer_bytes, std::string_view where) {
  uint64_t expected = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    uint64_t bytes = dtype_size(entry.dtype);
    for (int64_t extent : entry.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes) || bytes > INT64_MAX) {
        fail(ErrorCode::kCorruptFile, "{}: tensor \"{}\" of shape {} is larger than 2^63 bytes", where,
             entry.name, shape_text(entry.shape));
      }
    }
    if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
      fail(ErrorCode::kCorruptFile,
           "{}: tensor \"{}\" {} {} needs {} bytes, its data_offsets [{}, {}] do not span them", where,
           entry.name, dtype_name(entry.dtype), shape_text(entry.shape), bytes, entry.begin, entry.end);
    }
    if (entry.begin != expected) {
      fail(ErrorCode::kCorruptFile,
           "{}: tensor \"{}\" begins at byte {} of the data, expected {}: tensors must neither overlap nor "
           "leave holes",
           where, entry.name, entry.begin, expected);
    }
    expected = entry.end;
  }
  if (expected > buffer_bytes) {
    fail(
        ErrorCode::kCorruptFile,
        "{}: the file is truncated: its header promises {} bytes of tensors, {} are there; download it again",
        where, expected, buffer_bytes);
  }
  if (expected < buffer_bytes) {
    fail(ErrorCode::kCorruptFile, "{}: {} bytes follow the last tensor; nothing may stand there", where,
         buffer_bytes - expected);
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t buffer_bytes,
                                           std::string_view where) {
  if (json.empty() || json[0] != '{') {
    fail(ErrorCode::kCorruptFile, "{}: the header does not begin with '{{': this is not a safetensors file",
         where);
  }
  const size_t last = json.find_last_not_of(' ');
  if (json[last] != '}') {
    fail(ErrorCode::kCorruptFile, "{}: the header does not end with '}}' and spaces", where);
  }
  json = json.substr(0, last + 1);
  HeaderBuilder builder(where);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &builder)) {
    fail(ErrorCode::kCorruptFile, "{}: the header is not valid JSON", where);
  }
  SafetensorsHeader header = builder.take();
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  check_layout(header, buffer_bytes, where);
  return header;
}

}  // namespace lowbit
