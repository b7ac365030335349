// Conversations: a model's chat template (the Jinja that templates use, interpreted under limits) turns
// messages into the text that the model was trained on. Text that a user typed never becomes a special token.
#pragma once

#include "lowbit/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

class Json;

struct Message {
  std::string role;     // "system", "user", "assistant", ...
  std::string content;  // UTF-8
};

struct ChatOptions {
  bool add_generation_prompt = true;
  std::string
      extra_json;  // an object of further template variables ("tools", "enable_thinking", ...); may be empty
  int64_t now = -1;  // seconds since 1970 UTC that strftime_now shows in local time; -1: the system's clock
};

struct RenderedChat {
  std::string text;
  // The bytes of `text` that came from messages or extra_json, not from the template (sorted, disjoint): a
  // special token that touches one of them is only spelled by a user and has to be encoded as text. Roles
  // that are plain words, and variables of extra_json named *_token, count as the template's: templates build
  // "<|assistant|>" from them.
  std::vector<TextRange> literal;
};

class ChatTemplate {
 public:
  // chat_template.jinja, else `chat_template` of chat_template.json, else of tokenizer_config.json (a string,
  // or the "default" of a list); special token strings (bos_token, eos_token, ...) come from
  // tokenizer_config.json and special_tokens_map.json. kNotFound when the model has none.
  static ChatTemplate load(const std::filesystem::path& model_folder);
  // special_tokens_json: {"bos_token": "...", ...}; may be empty.
  static ChatTemplate from_source(std::string_view source, std::string_view special_tokens_json,
                                  std::string_view where);

  // What transformers' apply_chat_template(tokenize=False) gives, byte for byte: `tools` and `documents` are
  // None unless given, and reasoning is passed under all three of its names. Errors, with line and column of
  // the template: kInvalidArgument when it refuses (raise_exception), is not Jinja, or hits a limit on steps,
  // memory, output or depth; kUnsupported for Jinja that is not known. kInvalidArgument for content that is
  // not UTF-8.
  RenderedChat render(const std::vector<Message>& messages, const ChatOptions& options = {}) const;
  // The same with full message objects (tool calls, content parts): a JSON array.
  RenderedChat render_json(std::string_view messages_json, const ChatOptions& options = {}) const;

  const std::string& source() const;

 private:
  RenderedChat render_parsed(const Json& messages, const ChatOptions& options) const;

  struct State;
  std::shared_ptr<const State> state_;
};

// Renders and encodes: special tokens of the template become ids, those in content stay text. No further
// special tokens are added (a template writes its own BOS).
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                 const std::vector<Message>& messages, const ChatOptions& options = {});

}  // namespace lowbit
