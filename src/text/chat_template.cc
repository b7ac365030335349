#include "base/fail.h"
#include "base/files.h"
#include "base/json.h"
#include "lowbit/chat.h"
#include "text/jinja_interpreter.h"

#include <algorithm>
#include <ctime>

namespace lowbit {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;
constexpr const char* kReasoningNames[] = {"reasoning_content", "thinking", "reasoning"};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Templates write '<|' + role + '|>', so a role has to count as the template's own text; what is no plain
// word does not.
bool is_plain_role(std::string_view role) {
  return !role.empty() && role.size() <= 64 && std::all_of(role.begin(), role.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

// transformers passes the reasoning of a message under every name that a template may read.
Json with_reasoning_names(const Json& message) {
  const Json* reasoning = nullptr;
  for (const char* name : kReasoningNames) {
    const Json* found = message.find(name);
    if (!reasoning && found && !found->is_null()) reasoning = found;
  }
  if (!reasoning) return message;
  Json result = Json::object();
  result.set("thinking", *reasoning);
  for (const auto& [key, value] : message.as_object()) result.set(key, value);
  result.set("reasoning_content", *reasoning);
  return result;
}

jinja::Value message_value(jinja::Heap& heap, const Json& message) {
  const jinja::Value value = jinja::from_json(heap, with_reasoning_names(message), jinja::Trust::kUser);
  const Json* role = message.find("role");
  if (role && role->is_string() && is_plain_role(role->as_string())) {
    for (auto& [key, part] : value.dict->entries) {
      if (key.text() == "role") part = heap.string(role->as_string());
    }
  }
  return value;
}

// A special token is a string, or an object with the string as its "content".
void collect_special_tokens(const Json& config, Json& special) {
  if (!config.is_object()) return;
  for (const auto& [key, value] : config.as_object()) {
    if (special.find(key)) continue;
    const Json* content = value.is_object() ? value.find("content") : &value;
    if (ends_with(key, "_token") && content && content->is_string()) special.set(key, content->as_string());
    if (key != "additional_special_tokens" || !value.is_array()) continue;
    Json list = Json::array();
    for (const Json& element : value.as_array()) {
      const Json* text = element.is_object() ? element.find("content") : &element;
      if (text && text->is_string()) list.push_back(text->as_string());
    }
    special.set(key, std::move(list));
  }
}

Json read_config(const fs::path& file) {
  if (!fs::exists(file)) return Json();
  return parse_json(read_file(file, kMaxConfigBytes), file.string());
}

// The template in `config`: a string, or the entry named "default" of a list of {"name", "template"}.
const std::string* template_of(const Json& config, const fs::path& file) {
  const Json* value = config.find("chat_template");
  if (!value || value->is_null()) return nullptr;
  if (value->is_string()) return &value->as_string();
  std::string names;
  if (value->is_array()) {
    for (const Json& entry : value->as_array()) {
      const Json *name = entry.find("name"), *text = entry.find("template");
      if (!name || !name->is_string() || !text || !text->is_string()) continue;
      if (name->as_string() == "default") return &text->as_string();
      names += names.empty() ? "" : ", ";
      names += name->as_string().substr(0, 60);
    }
  }
  fail(ErrorCode::kUnsupported, "{}: chat_template is {} without a \"default\" (found: {})", file.string(),
       value->type_name(), names.empty() ? "nothing" : names);
}

}  // namespace

struct ChatTemplate::State {
  std::string source;
  std::shared_ptr<const jinja::Template> parsed;
  Json special_tokens = Json::object();
};

ChatTemplate ChatTemplate::from_source(std::string_view source, std::string_view special_tokens_json,
                                       std::string_view where) {
  auto state = std::make_shared<State>();
  state->source = std::string(source);
  state->parsed = jinja::parse_template(source, where, jinja::Limits());
  if (!special_tokens_json.empty()) {
    state->special_tokens = parse_json(special_tokens_json, std::string(where) + ": special tokens");
    if (!state->special_tokens.is_object()) {
      fail(ErrorCode::kInvalidArgument, "{}: the special tokens must be an object, found {}", where,
           state->special_tokens.type_name());
    }
  }
  ChatTemplate result;
  result.state_ = std::move(state);
  return result;
}

ChatTemplate ChatTemplate::load(const fs::path& model_folder) {
  const fs::path config_file = model_folder / "tokenizer_config.json";
  const Json config = read_config(config_file);
  Json special = Json::object();
  collect_special_tokens(config, special);
  collect_special_tokens(read_config(model_folder / "special_tokens_map.json"), special);
  if (const fs::path file = model_folder / "chat_template.jinja"; fs::exists(file)) {
    return from_source(read_file(file, kMaxConfigBytes), special.dump(), file.string());
  }
  const fs::path json_file = model_folder / "chat_template.json";
  const Json json = read_config(json_file);
  if (const std::string* text = template_of(json, json_file))
    return from_source(*text, special.dump(), json_file.string());
  if (const std::string* text = template_of(config, config_file)) {
    return from_source(*text, special.dump(), config_file.string() + ": chat_template");
  }
  fail(ErrorCode::kNotFound,
       "{} has no chat template: neither chat_template.jinja nor chat_template.json nor \"chat_template\" in "
       "tokenizer_config.json. A base model has none; give plain text instead of messages",
       model_folder.string());
}

const std::string& ChatTemplate::source() const { return state_->source; }

RenderedChat ChatTemplate::render(const std::vector<Message>& messages, const ChatOptions& options) const {
  Json array = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!jinja::is_valid_utf8(messages[i].role) || !jinja::is_valid_utf8(messages[i].content)) {
      fail(ErrorCode::kInvalidArgument, "message {} is not UTF-8", i + 1);
    }
    Json message = Json::object();
    message.set("role", messages[i].role);
    message.set("content", messages[i].content);
    array.push_back(std::move(message));
  }
  return render_parsed(array, options);
}

RenderedChat ChatTemplate::render_json(std::string_view messages_json, const ChatOptions& options) const {
  return render_parsed(parse_json(messages_json, "messages"), options);
}

RenderedChat ChatTemplate::render_parsed(const Json& messages, const ChatOptions& options) const {
  if (!messages.is_array()) {
    fail(ErrorCode::kInvalidArgument, "messages must be an array of objects, found {}", messages.type_name());
  }
  const int64_t now = options.now >= 0 ? options.now : static_cast<int64_t>(std::time(nullptr));
  const jinja::Limits limits;
  jinja::Interpreter interpreter(*state_->parsed, limits, now);
  jinja::Heap& heap = interpreter.heap();
  jinja::List* list = heap.list();
  for (const Json& message : messages.as_array()) {
    if (!message.is_object()) {
      fail(ErrorCode::kInvalidArgument, "a message must be an object with role and content, found {}",
           message.type_name());
    }
    heap.append(*list, message_value(heap, message));
  }
  interpreter.define("tools", jinja::Value::none());
  interpreter.define("documents", jinja::Value::none());
  for (const auto& [name, value] : state_->special_tokens.as_object()) {
    interpreter.define(name, jinja::from_json(heap, value, jinja::Trust::kTemplate));
  }
  interpreter.define("add_generation_prompt", jinja::Value::of(options.add_generation_prompt));
  const Json extra =
      options.extra_json.empty() ? Json::object() : parse_json(options.extra_json, "template variables");
  if (!extra.is_object()) {
    fail(ErrorCode::kInvalidArgument, "template variables must be an object, found {}", extra.type_name());
  }
  for (const auto& [name, value] : extra.as_object()) {
    const jinja::Trust trust = ends_with(name, "_token") ? jinja::Trust::kTemplate : jinja::Trust::kUser;
    interpreter.define(name, jinja::from_json(heap, value, trust));
  }
  interpreter.define("messages", jinja::Value::of(list));
  jinja::TextBuilder out(heap, limits.output);
  interpreter.render(out);
  RenderedChat result;
  out.take(result.text, result.literal);
  return result;
}

}  // namespace lowbit
