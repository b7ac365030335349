#include "lowbit/dataset.h"

#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "base/sha256.h"
#include "text/dataset_layout.h"
#include "text/jinja_text.h"

#include <algorithm>

namespace lowbit {

namespace {

constexpr size_t kMaxLine = size_t{64} << 20;
constexpr size_t kMaxArray = size_t{1} << 30;

void drop_byte_order_mark(std::string_view& bytes) {
  if (bytes.substr(0, 3) == "\xef\xbb\xbf") bytes.remove_prefix(3);
}

void check_utf8(std::string_view bytes, std::string_view where) {
  if (jinja::is_valid_utf8(bytes)) return;
  size_t number = 1;
  for (size_t begin = 0; begin < bytes.size(); ++number) {
    const size_t end = std::min(bytes.find('\n', begin), bytes.size());
    if (!jinja::is_valid_utf8(bytes.substr(begin, end - begin))) break;
    begin = end + 1;
  }
  fail(ErrorCode::kCorruptFile, "{}: line {} is not UTF-8", where, number);
}

class DatasetReader {
 public:
  DatasetReader(std::string_view where, const DatasetOptions& options) : where_(where), options_(options) {}

  // unit: "line" or "example", which is what `number` counts.
  void add(const Json& object, const char* unit, size_t number) {
    const std::string line = fmt::format("{} {}", unit, number), where = fmt::format("{}: {}", where_, line);
    Example example;
    const DatasetKind kind = read_example(object, where, line, options_, example, warnings_);
    if (!dataset_.examples.empty() && kind != dataset_.kind) {
      const bool is_chat = kind == DatasetKind::kChat;
      fail(ErrorCode::kUnsupported, "{}: a {} among {}: a file holds one of the two", where,
           is_chat ? "conversation" : "plain text", is_chat ? "plain texts" : "conversations");
    }
    dataset_.kind = kind;
    const Json* id = object.find("id");
    if (id && id->is_string()) {
      example.id = id->as_string();
    } else {
      example.id = id && id->is_integer() ? std::to_string(id->as_integer()) : std::to_string(number);
    }
    dataset_.examples.push_back(std::move(example));
  }

  void read_lines(std::string_view bytes) {
    size_t number = 0;
    while (!bytes.empty()) {
      ++number;
      const size_t end = bytes.find('\n');
      const bool is_last = end == bytes.npos;
      std::string_view line = bytes.substr(0, end);
      bytes.remove_prefix(is_last ? bytes.size() : end + 1);
      const std::string where = fmt::format("{}: line {}", where_, number);
      if (line.size() > kMaxLine) {
        fail(ErrorCode::kCorruptFile,
             "{} has {} bytes, at most {} are read: is this JSON with one example a line?", where,
             line.size(), kMaxLine);
      }
      if (line.find_first_not_of(" \t\r") == line.npos) continue;
      if (!jinja::is_valid_utf8(line)) fail(ErrorCode::kCorruptFile, "{} is not UTF-8", where);
      add(parse_line(line, where, is_last), "line", number);
    }
  }

  void read_array(std::string_view bytes) {
    if (bytes.size() > kMaxArray) {
      fail(ErrorCode::kCorruptFile,
           "{}: a JSON array of {} bytes, at most {} are read: write one example a line", where_,
           bytes.size(), kMaxArray);
    }
    check_utf8(bytes, where_);
    const Json array = parse_json(bytes, where_);
    for (size_t i = 0; i < array.size(); ++i) add(array.as_array()[i], "example", i + 1);
  }

  Dataset take() {
    if (dataset_.examples.empty()) fail(ErrorCode::kInvalidArgument, "{} holds no examples", where_);
    dataset_.warnings = warnings_.take();
    return std::move(dataset_);
  }

 private:
  static Json parse_line(std::string_view line, const std::string& where, bool is_last) {
    try {
      return parse_json(line, where);
    } catch (const Error& error) {
      if (!is_last || error.code() != ErrorCode::kCorruptFile) throw;
      fail(ErrorCode::kCorruptFile,
           "{} (this is the last line, and no line break ends it: the file may be truncated)", error.what());
    }
  }

  std::string_view where_;
  const DatasetOptions& options_;
  Dataset dataset_;
  DatasetWarnings warnings_;
};

Dataset plain_text(std::string_view bytes, std::string_view where) {
  if (bytes.empty()) fail(ErrorCode::kInvalidArgument, "{} is empty", where);
  check_utf8(bytes, where);
  Dataset dataset;
  dataset.kind = DatasetKind::kPlainText;
  Example& example = dataset.examples.emplace_back();
  example.id = std::to_string(1);
  example.text = std::string(bytes);
  return dataset;
}

}  // namespace

Dataset parse_dataset(std::string_view bytes, DatasetSyntax syntax, std::string_view where,
                      const DatasetOptions& options) {
  drop_byte_order_mark(bytes);
  if (syntax == DatasetSyntax::kPlainText) return plain_text(bytes, where);
  DatasetReader reader(where, options);
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first != bytes.npos && bytes[first] == '[') {
    reader.read_array(bytes);
  } else {
    reader.read_lines(bytes);
  }
  return reader.take();
}

Dataset load_dataset(const std::filesystem::path& file, const DatasetOptions& options) {
  std::string extension = file.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool is_json = extension == ".jsonl" || extension == ".json" || extension == ".ndjson";
  const auto mapped = MappedFile::open(file);
  const std::string_view bytes(reinterpret_cast<const char*>(mapped->bytes().data()), mapped->bytes().size());
  return parse_dataset(bytes, is_json ? DatasetSyntax::kJson : DatasetSyntax::kPlainText, file.string(),
                       options);
}

std::string dialogue_hash(const std::vector<Message>& messages) {
  const size_t asked = messages.size() - (!messages.empty() && messages.back().role == "assistant");
  Sha256 hash;
  for (size_t i = 0; i < asked; ++i) {
    for (const std::string& part : {messages[i].role, messages[i].content}) {
      hash.append(part);
      hash.append("", 1);  // a zero byte
    }
  }
  return hash.finish().substr(0, 16);
}

}  // namespace lowbit
