// Runs the program as a user does, from tests.
#pragma once

#include "base/files.h"
#include "base/json.h"
#include "support.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sys/wait.h>
#include <vector>

namespace lowbit::testing {

struct Outcome {
  int code = -1;
  std::string out, err;
};

struct RunOptions {
  std::string input;   // on stdin
  std::string prefix;  // of the shell, such as "ulimit -f 8; "
};

inline std::string quoted(const std::string& word) {
  std::string out = "'";
  for (char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// Runs the program with `words`.
inline Outcome run(const std::vector<std::string>& words, const RunOptions& options = {}) {
  const TemporaryFolder folder;
  const std::filesystem::path in = folder.path() / "in", out = folder.path() / "out",
                              err = folder.path() / "err";
  std::ofstream(in, std::ios::binary) << options.input;
  std::string command = options.prefix + quoted(LOWBIT_BINARY);
  for (const std::string& word : words) command.append(" ").append(quoted(word));
  command.append(" <").append(quoted(in)).append(" >").append(quoted(out)).append(" 2>").append(quoted(err));
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
}

inline int64_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }
inline bool holds(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// Runs with --json and returns the object on stdout.
inline Json run_json(std::vector<std::string> words, const std::string& input = "") {
  words.push_back("--json");
  const Outcome outcome = run(words, {.input = input});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  Json json = parse_json(outcome.out, "stdout");
  EXPECT_TRUE(json.is_object());
  return json;
}

}  // namespace lowbit::testing
