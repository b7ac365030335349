// Reads one JSON object a line from stdin ({"template", "messages", "special_tokens", "extra",
// "add_generation_prompt", "now"}) and prints {"text", "literal"} or {"error", "code"} for each.
// tests/golden/make_template_golden.py compares them with Python's jinja2.
#include "base/json.h"
#include "lowbit/chat.h"
#include "lowbit/error.h"

#include <cstdio>
#include <iostream>

namespace {

lowbit::Json render(const std::string& line) {
  using lowbit::Json;
  Json result = Json::object();
  try {
    const Json request = lowbit::parse_json(line, "stdin");
    const Json* special = request.find("special_tokens");
    const Json* extra = request.find("extra");
    const Json* now = request.find("now");
    const Json* prompt = request.find("add_generation_prompt");
    lowbit::ChatOptions options;
    if (extra) options.extra_json = extra->dump();
    if (now) options.now = now->as_integer();
    if (prompt) options.add_generation_prompt = prompt->as_bool();
    const auto chat = lowbit::ChatTemplate::from_source(request.get("template").as_string(),
                                                        special ? special->dump() : "", "template");
    const lowbit::RenderedChat rendered = chat.render_json(request.get("messages").dump(), options);
    result.set("text", rendered.text);
    Json literal = Json::array();
    for (const lowbit::TextRange& range : rendered.literal) {
      literal.push_back(Json::Array{Json(uint64_t{range.begin}), Json(uint64_t{range.end})});
    }
    result.set("literal", std::move(literal));
  } catch (const lowbit::Error& error) {
    result.set("error", error.what());
    result.set("code", lowbit::error_code_name(error.code()));
  }
  return result;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) std::puts(render(line).dump().c_str());
  return 0;
}
