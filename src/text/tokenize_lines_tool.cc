// lowbit_tokenize_lines FOLDER: for each line of stdin, a JSON string or {"text":..., "special":bool,
// "parse":bool} or
// {"text":..., "second": ..., "max_length": n} or
// {"ids":[...], "skip":bool}, prints one line: the ids as JSON (of two texts ids, then token types), or the
// decoded text as JSON, or {"error":
// "..."}. `special` adds the tokens around a text, `parse` recognises special tokens in it. For tests only.
#include "base/json.h"
#include "lowbit/error.h"
#include "lowbit/tokenizer.h"

#include <cstdio>
#include <iostream>

namespace {

using lowbit::Json;

bool flag(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value != nullptr && value->as_bool();
}

Json answer(const lowbit::Tokenizer& tokenizer, const Json& request) {
  if (const Json* ids = request.find("ids")) {
    std::vector<int32_t> list;
    for (const Json& id : ids->as_array()) list.push_back(static_cast<int32_t>(id.as_integer()));
    const lowbit::DecodeOptions options{.skip_special_tokens = flag(request, "skip")};
    std::string text = tokenizer.decode(list, options);
    lowbit::StreamDecoder stream(tokenizer, options);
    std::string streamed;
    for (int32_t id : list) streamed += stream.push(id);
    streamed += stream.finish();
    if (streamed != text) return Json(Json::Object{{"error", "the stream gives: " + streamed}});
    return text;
  }
  const std::string& text = request.is_string() ? request.as_string() : request.get("text").as_string();
  const lowbit::EncodeOptions options{.add_special_tokens = flag(request, "special"),
                                      .parse_special_tokens = flag(request, "parse")};
  if (const Json* second = request.find("second")) {
    const lowbit::EncoderInput input =
        tokenizer.encode_input(text, second->as_string(), request.get("max_length").as_integer(), options);
    Json::Array list;
    for (const auto* values : {&input.ids, &input.types}) {
      for (int32_t value : *values) list.emplace_back(int64_t{value});
    }
    return Json(std::move(list));
  }
  Json::Array out;
  for (int32_t id : tokenizer.encode(text, options)) out.emplace_back(int64_t{id});
  return Json(std::move(out));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const auto tokenizer = lowbit::Tokenizer::load(argv[1]);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::cout << answer(tokenizer, lowbit::parse_json(line, "stdin")).dump() << '\n';
      } catch (const lowbit::Error& error) {
        std::cout << Json(Json::Object{{"error", error.what()}}).dump() << '\n';
      }
    }
  } catch (const lowbit::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
