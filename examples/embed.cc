// One embedding for each line of stdin, as numbers with spaces between them.
//   embed MODEL < texts.txt
#include "lowbit/embed.h"

#include <cstdio>
#include <exception>
#include <iostream>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL < TEXTS\n", argv[0]);
    return 2;
  }
  try {
    const lowbit::LanguageModel model = lowbit::LanguageModel::load(argv[1]);
    std::vector<std::string> texts;
    for (std::string line; std::getline(std::cin, line);) texts.push_back(line);
    const lowbit::Embeddings embeddings = lowbit::embed(model, texts, {.truncate = true});
    for (int64_t text = 0; text < embeddings.count; ++text) {
      const float* row = embeddings.values.data() + text * embeddings.width;
      for (int64_t i = 0; i < embeddings.width; ++i) std::printf(i > 0 ? " %.9g" : "%.9g", double{row[i]});
      std::printf("\n");
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
