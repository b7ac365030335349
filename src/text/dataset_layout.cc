#include "text/dataset_layout.h"

#include "base/fail.h"

#include <algorithm>
#include <utility>

namespace lowbit {

namespace {

constexpr size_t kMaxWarnings = 20;

// What ShareGPT files call the speakers, and what chat templates call them.
constexpr std::pair<std::string_view, std::string_view> kRoles[] = {
    {"human", "user"},          {"user", "user"},         {"gpt", "assistant"},
    {"assistant", "assistant"}, {"chatgpt", "assistant"}, {"bot", "assistant"},
    {"model", "assistant"},     {"system", "system"},     {"function_call", "assistant"},
    {"observation", "tool"},    {"function", "tool"},     {"tool", "tool"}};

struct Reader {
  const Json& object;
  std::string_view where, line;
  Example& example;
  DatasetWarnings& warnings;

  [[noreturn]] void fail_field(std::string_view field, const char* expected, const Json& found) const {
    fail(ErrorCode::kCorruptFile, "{}: \"{}\" should be {}, found {}", where, field, expected,
         found.type_name());
  }

  const std::string& string_of(const Json& value, std::string_view field) const {
    if (!value.is_string()) fail_field(field, "a string", value);
    return value.as_string();
  }

  const Json& need(const Json& from, std::string_view key, std::string_view layout) const {
    const Json* value = from.find(key);
    if (!value) fail(ErrorCode::kCorruptFile, "{}: {} has no \"{}\"", where, layout, key);
    return *value;
  }

  void add(std::string role, std::string content) const {
    if (role == "assistant" && content.find_first_not_of(" \t\r\n") == content.npos) {
      warnings.add(fmt::format("{}: empty assistant turn", line));
    }
    example.messages.push_back({std::move(role), std::move(content)});
  }

  std::string content_of(const Json& content) const {
    if (content.is_string()) return content.as_string();
    if (content.is_null()) {
      warnings.add(fmt::format("{}: the content of message {} is null (tool calls are not read)", line,
                               example.messages.size() + 1));
      return "";
    }
    if (!content.is_array()) fail_field("content", "a string or a list of parts", content);
    std::string joined;
    for (const Json& part : content.as_array()) {
      if (part.is_string()) {
        joined += part.as_string();
        continue;
      }
      const Json *type = part.find("type"), *text = part.find("text");
      if (type && type->is_string() && type->as_string() != "text") {
        fail(ErrorCode::kUnsupported, "{}: message {} holds a part of type \"{}\": only text is read", where,
             example.messages.size() + 1, type->as_string().substr(0, 60));
      }
      if (!text) fail_field("content", "a list of {\"type\": \"text\", \"text\": ...}", part);
      joined += string_of(*text, "text");
    }
    return joined;
  }

  void add_messages(const Json& messages, std::string_view field) const {
    if (!messages.is_array()) fail_field(field, "a list of messages", messages);
    for (const Json& message : messages.as_array()) {
      if (!message.is_object()) fail_field(field, "a list of objects", message);
      const std::string& role = string_of(need(message, "role", "a message"), "role");
      if (role.empty())
        fail(ErrorCode::kCorruptFile, "{}: message {} has an empty role", where, example.messages.size() + 1);
      add(role, content_of(need(message, "content", "a message")));
    }
    if (messages.size() == 0) fail(ErrorCode::kCorruptFile, "{}: \"{}\" is empty", where, field);
  }

  void add_share_gpt(const Json& turns, std::string_view field) const {
    if (!turns.is_array()) fail_field(field, "a list of turns", turns);
    if (turns.size() == 0) fail(ErrorCode::kCorruptFile, "{}: \"{}\" is empty", where, field);
    for (const Json& turn : turns.as_array()) {
      if (turn.find("role") && turn.find("content")) return add_messages(turns, field);
      if (!turn.is_object()) fail_field(field, "a list of objects", turn);
      const std::string& from = string_of(need(turn, "from", "a turn"), "from");
      const auto* role =
          std::find_if(std::begin(kRoles), std::end(kRoles), [&](const auto& r) { return r.first == from; });
      if (role == std::end(kRoles)) {
        fail(ErrorCode::kUnsupported,
             "{}: turn {} is from \"{}\"; known are human, user, gpt, assistant, system, tool", where,
             example.messages.size() + 1, from.substr(0, 60));
      }
      add(std::string(role->second), string_of(need(turn, "value", "a turn"), "value"));
    }
  }

  void add_system() const {
    const Json* system = object.find("system");
    if (system && system->is_string() && !system->as_string().empty()) add("system", system->as_string());
  }

  // A string said by `role`, or messages.
  void add_side(const Json& value, std::string_view field, const char* role) const {
    if (value.is_array()) return add_messages(value, field);
    add(role, string_of(value, field));
  }

  void add_alpaca() const {
    std::string user = string_of(need(object, "instruction", "an Alpaca line"), "instruction");
    const Json* input = object.find("input");
    if (input && !input->is_null() && !string_of(*input, "input").empty())
      user += "\n\n" + input->as_string();
    add("user", std::move(user));
    add("assistant", string_of(need(object, "output", "an Alpaca line"), "output"));
  }

  [[noreturn]] void fail_layout() const {
    std::string keys;
    for (const auto& [key, value] : object.as_object()) {
      if (!keys.empty()) keys += ", ";
      keys += key.substr(0, 60);
      if (keys.size() > 300) break;
    }
    fail(ErrorCode::kUnsupported,
         "{}: not a known layout; expected \"messages\", \"conversations\", \"instruction\" with \"output\", "
         "\"prompt\" with "
         "\"completion\" or \"response\", or \"text\"; found the keys: {}",
         where, keys.empty() ? "none" : keys);
  }

  DatasetKind read() const {
    const Json* completion = object.find("completion");
    if (!completion) completion = object.find("response");
    if (const Json* messages = object.find("messages")) {
      add_messages(*messages, "messages");
    } else if (const Json* turns = object.find("conversations")) {
      add_system();
      add_share_gpt(*turns, "conversations");
    } else if (object.find("instruction") && object.find("output")) {
      add_system();
      add_alpaca();
    } else if (object.find("prompt") && completion) {
      add_system();
      add_side(object.get("prompt"), "prompt", "user");
      add_side(*completion, object.find("completion") ? "completion" : "response", "assistant");
    } else if (const Json* text = object.find("text")) {
      example.text = string_of(*text, "text");
      if (const Json* second = object.find("text_pair")) example.text_pair = string_of(*second, "text_pair");
      if (example.text.empty()) warnings.add(fmt::format("{}: empty text", line));
      return DatasetKind::kText;
    } else {
      fail_layout();
    }
    return DatasetKind::kChat;
  }
};

}  // namespace

void DatasetWarnings::add(std::string warning) {
  if (kept_.size() < kMaxWarnings) {
    kept_.push_back(std::move(warning));
  } else {
    ++dropped_;
  }
}

std::vector<std::string> DatasetWarnings::take() {
  if (dropped_ > 0) kept_.push_back(fmt::format("and {} more warnings", dropped_));
  return std::move(kept_);
}

DatasetKind read_example(const Json& object, std::string_view where, std::string_view line,
                         const DatasetOptions& options, Example& example, DatasetWarnings& warnings) {
  if (!object.is_object()) {
    fail(ErrorCode::kUnsupported, "{}: expected an object, found {}", where, object.type_name());
  }
  const DatasetKind kind = Reader{object, where, line, example, warnings}.read();
  if (!options.label_key.empty()) {
    if (const Json* label = object.find(options.label_key)) {
      example.label_json = label->dump();
    } else {
      warnings.add(fmt::format("{}: no label \"{}\"", line, options.label_key));
    }
  }
  return kind;
}

}  // namespace lowbit
