#include "text/tokenizer_decoder.h"

#include "base/fail.h"
#include "text/unicode.h"

namespace lowbit {
namespace {

constexpr size_t kMaxSteps = 64, kMaxContentBytes = 4096;

bool flag(const Json& json, std::string_view key, bool otherwise) {
  const Json* value = json.find(key);
  return value == nullptr || value->is_null() ? otherwise : value->as_bool();
}

size_t count_of(const Json& json, std::string_view key) {
  const int64_t count = json.get(key).as_integer();
  if (count < 0 || count > 1'000'000) {
    fail(ErrorCode::kCorruptFile, "\"{}\" is {}, expected 0 to 1000000", key, count);
  }
  return static_cast<size_t>(count);
}

}  // namespace

Decoder Decoder::from_json(const Json* json) {
  Decoder decoder;
  if (json == nullptr || json->is_null()) {
    decoder.steps_.push_back({.kind = Kind::kJoin});
  } else {
    decoder.add(*json);
  }
  return decoder;
}

void Decoder::add(const Json& json) {
  const std::string& type = json.get("type").as_string();
  if (steps_.size() >= kMaxSteps) fail(ErrorCode::kUnsupported, "more than {} decoders", kMaxSteps);
  const auto content_of = [&](std::string_view key, std::string_view otherwise) {
    const Json* value = json.find(key);
    const std::string content = value == nullptr ? std::string(otherwise) : value->as_string();
    if (content.size() > kMaxContentBytes) {
      fail(ErrorCode::kUnsupported, "{} has {} bytes of \"{}\", at most {} are supported", type,
           content.size(), key, kMaxContentBytes);
    }
    return content;
  };
  const auto character_of = [&](std::string_view key) {
    const std::string content = json.get(key).as_string();
    if (content.empty() || decode_utf8(content, 0).length != content.size()) {
      fail(ErrorCode::kCorruptFile, "{} has \"{}\" as \"{}\", expected one character", type,
           content.substr(0, 100), key);
    }
    return content;
  };
  if (type == "Sequence") {
    for (const Json& element : json.get("decoders").as_array()) add(element);
  } else if (type == "ByteLevel") {
    steps_.push_back({.kind = Kind::kByteLevel});
  } else if (type == "Metaspace") {
    const Json* scheme = json.find("prepend_scheme");
    const bool is_never = scheme != nullptr && scheme->is_string() ? scheme->as_string() == "never"
                                                                   : !flag(json, "add_prefix_space", true);
    steps_.push_back({.kind = Kind::kMetaspace, .content = character_of("replacement"), .is_on = !is_never});
  } else if (type == "ByteFallback") {
    steps_.push_back({.kind = Kind::kByteFallback});
  } else if (type == "Fuse") {
    steps_.push_back({.kind = Kind::kFuse});
  } else if (type == "Strip") {
    steps_.push_back({.kind = Kind::kStrip,
                      .content = character_of("content"),
                      .start = count_of(json, "start"),
                      .stop = count_of(json, "stop")});
  } else if (type == "Replace") {
    steps_.push_back({.kind = Kind::kReplace,
                      .pattern = Pattern::from_json(json.get("pattern")),
                      .content = content_of("content", "")});
  } else if (type == "WordPiece") {
    steps_.push_back({.kind = Kind::kWordPiece,
                      .content = content_of("prefix", "##"),
                      .is_on = flag(json, "cleanup", true)});
  } else if (type == "BPEDecoder") {
    steps_.push_back({.kind = Kind::kBpe, .content = content_of("suffix", "</w>")});
  } else {
    fail(ErrorCode::kUnsupported, "the decoder \"{}\" is not supported", type);
  }
}

}  // namespace lowbit
