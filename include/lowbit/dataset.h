// The user's own examples: JSONL with chat messages, Alpaca, ShareGPT or plain "text", or a plain text file.
#pragma once

#include "lowbit/chat.h"

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct Example {
  std::string id;                         // "id" of the line, else its line number
  std::vector<Message> messages;          // empty for plain text
  std::string text;                       // plain text, when there are no messages
  std::optional<std::string> label_json;  // the value of the label key, as JSON, when asked for and present
  std::optional<std::string> text_pair;   // a second text that belongs to `text`
};

enum class DatasetKind {
  kChat,
  kText,
  kPlainText
};  // kPlainText: one long text, to be cut into windows by tokens

struct Dataset {
  DatasetKind kind = DatasetKind::kChat;
  std::vector<Example> examples;
  std::vector<std::string> warnings;  // "line 7: empty assistant turn", at most 20, then a count
};

struct DatasetOptions {
  std::string label_key;  // top-level key whose value goes to Example::label_json; may be empty
};

// .jsonl and .json are read line by line (or as one array); everything else is plain text. Layouts of a line:
//   {"messages": [{"role", "content"}, ...]}               content: a string, or a list of text parts, which
//   are joined
//   {"conversations": [{"from", "value"}, ...]}            ShareGPT; human, gpt, system, ... become user,
//   assistant, system
//   {"instruction", "input", "output"}                     Alpaca; the user says "instruction\n\ninput"
//   {"prompt", "completion"} or {"prompt", "response"}     strings, or lists of messages
//   {"text"}, {"text", "text_pair"}                        kText; all others are kChat. A file holds one of
//   the two.
// A string "system" beside the second to fourth becomes the first message. Further keys are ignored, but for
// the label. CRLF, blank lines and a BOM are accepted. Errors name file and line: kCorruptFile (bad JSON, a
// key that appears twice, truncated last line, a line over 64 MiB, not UTF-8, a field of the wrong type, no
// messages), kUnsupported (none of the layouts: says which keys were found; an unknown role; parts that are
// not text), kInvalidArgument (no examples). Warnings: an empty assistant turn, content that is null, empty
// text, a label that is not there.
Dataset load_dataset(const std::filesystem::path& file, const DatasetOptions& options = {});

// The same from memory. `where` names the source in messages.
enum class DatasetSyntax { kJson, kPlainText };
Dataset parse_dataset(std::string_view bytes, DatasetSyntax syntax, std::string_view where,
                      const DatasetOptions& options = {});

// 16 hexadecimal digits of a SHA-256 over what a dialogue asks: its messages without the assistant turn that
// ends it. Equal questions have equal hashes, whatever their label or file.
std::string dialogue_hash(const std::vector<Message>& messages);

}  // namespace lowbit
