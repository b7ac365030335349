// The user's own examples: JSONL with chat messages, Alpaca, ShareGPT or plain "text", or a plain text file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/chat.h"

namespace lowbit {

struct Example {
  std::string id;                  // "id" of the line, else its line number
  std::vector<Message> messages;   // empty for plain text
  std::string text;                // plain text, when there are no messages
  std::optional<std::string> label_json;  // the value of the label key, as JSON, when asked for and present
};

enum class DatasetKind { kChat, kText, kPlainText };  // kPlainText: one long text, to be cut into windows by tokens

struct Dataset {
  DatasetKind kind = DatasetKind::kChat;
  std::vector<Example> examples;
  std::vector<std::string> warnings;  // "line 7: empty assistant turn", at most 20, then a count
};

struct DatasetOptions {
  std::string label_key;  // top-level key whose value goes to Example::label_json; may be empty
};

// .jsonl and .json are read line by line (or as one array); everything else is plain text. Errors name file and line:
// kCorruptFile (bad JSON, truncated last line, a line over 64 MiB), kUnsupported (none of the known layouts; says which
// keys were found), kInvalidArgument (no examples). CRLF and a BOM are accepted.
Dataset load_dataset(const std::filesystem::path& file, const DatasetOptions& options = {});

}  // namespace lowbit
