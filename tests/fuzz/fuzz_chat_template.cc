// Bytes: a template, a NUL, and a JSON array of messages. Whatever they hold, rendering ends in text or in a
// lowbit::Error.
#include "lowbit/chat.h"
#include "lowbit/error.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string_view source = input.substr(0, end);
  const std::string_view messages =
      end == input.npos ? "[{\"role\": \"user\", \"content\": \"<|im_end|> Hi\"}]" : input.substr(end + 1);
  try {
    lowbit::ChatOptions options;
    options.now = 0;
    options.extra_json = R"({"tools": [{"name": "f", "parameters": {"x": [1, 2.5, null, true]}}]})";
    const auto chat = lowbit::ChatTemplate::from_source(source, R"({"bos_token": "<s>"})", "template");
    const lowbit::RenderedChat rendered = chat.render_json(messages, options);
    size_t last = 0;
    for (const lowbit::TextRange& range : rendered.literal) {
      if (range.begin >= range.end || range.begin < last || range.end > rendered.text.size()) std::abort();
      last = range.end;
    }
  } catch (const lowbit::Error& error) {
    if (error.code() == lowbit::ErrorCode::kInternal) std::abort();
  }
  return 0;
}
