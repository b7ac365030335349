// A folder of compressed-tensors for tests: tensors and a config that they may spoil before it is read.
#pragma once

#include "base/files.h"
#include "checkpoint/checkpoint.h"
#include "io/safetensors.h"
#include "support.h"

#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

namespace lowbit::testing {

inline void expect_parts(const std::string& message, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
}

struct CompressedFolder {
  TemporaryFolder folder;
  Json config;
  std::map<std::string, Tensor> tensors;

  Checkpoint read() {
    std::vector<NamedTensor> all;
    for (const auto& [name, tensor] : tensors) all.push_back({name, tensor});
    write_safetensors(folder.path() / "model.safetensors", all);
    write_file_atomically(folder.path() / "config.json", config.dump());
    return read_checkpoint(folder.path());
  }
  void replace_in_config(const std::string& from, const std::string& to) {
    std::string text = config.dump();
    const size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from << " in " << text;
    config = parse_json(text.replace(at, from.size(), to), "config");
  }
  std::string refusal(ErrorCode code = ErrorCode::kCorruptFile) {
    return error_of(code, [&] { read(); });
  }
};

}  // namespace lowbit::testing
