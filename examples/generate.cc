// Asks a chat model one question and streams its answer.
//   generate MODEL "question"
#include "lowbit/generate.h"

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL QUESTION\n", argv[0]);
    return 2;
  }
  try {
    const lowbit::LanguageModel model = lowbit::LanguageModel::load(argv[1]);
    const std::vector<lowbit::Message> messages = {{"user", argv[2]}};
    const std::vector<int32_t> prompt =
        lowbit::encode_chat(model.tokenizer(), model.chat_template(), messages);

    lowbit::GenerateOptions options;
    options.max_new_tokens = 64;
    lowbit::GenerateSpeed speed;
    model.generate(
        {prompt}, options,
        [](size_t, std::string_view text) {
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
          return true;
        },
        &speed);
    std::printf("\n");
    std::fprintf(stderr, "%.0f tokens/s\n", static_cast<double>(speed.decode_tokens) / speed.decode_seconds);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
