// Conversations: a model's chat template (the Jinja that templates use, interpreted under limits) turns messages into
// the text that the model was trained on. Text that a user typed never becomes a special token.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lowbit/tokenizer.h"

namespace lowbit {

struct Message {
  std::string role;     // "system", "user", "assistant", ...
  std::string content;  // UTF-8
};

struct ChatOptions {
  bool add_generation_prompt = true;
  std::string extra_json;  // an object of further template variables ("tools", "enable_thinking", ...); may be empty
};

struct RenderedChat {
  std::string text;
  std::vector<TextRange> literal;  // where content stands that spells a special token: to be encoded as text
};

class ChatTemplate {
 public:
  // chat_template.jinja, else `chat_template` of tokenizer_config.json (a string, or the "default" of a list); special
  // token strings (bos_token, eos_token, ...) come from the same folder. kNotFound when the model has none.
  static ChatTemplate load(const std::filesystem::path& model_folder);
  // special_tokens_json: {"bos_token": "...", ...}; may be empty.
  static ChatTemplate from_source(std::string_view source, std::string_view special_tokens_json, std::string_view where);

  // Errors: kInvalidArgument when the template refuses (raise_exception) or a limit on steps, output or depth is hit;
  // kUnsupported, with line and column, for Jinja that is not known.
  RenderedChat render(const std::vector<Message>& messages, const ChatOptions& options = {}) const;
  // The same with full message objects (tool calls, content parts): a JSON array.
  RenderedChat render_json(std::string_view messages_json, const ChatOptions& options = {}) const;

  const std::string& source() const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

// Renders and encodes: special tokens of the template become ids, those in content stay text. No further special
// tokens are added (a template writes its own BOS).
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                 const std::vector<Message>& messages, const ChatOptions& options = {});

}  // namespace lowbit
