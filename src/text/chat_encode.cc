#include "lowbit/chat.h"

namespace lowbit {

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                 const std::vector<Message>& messages, const ChatOptions& options) {
  const RenderedChat rendered = chat_template.render(messages, options);
  EncodeOptions encoding;
  encoding.parse_special_tokens = true;
  encoding.literal = rendered.literal;
  return tokenizer.encode(rendered.text, encoding);
}

}  // namespace lowbit
