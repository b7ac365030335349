// What a template can call by name, and the attributes of `loop`.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <ctime>

namespace lowbit::jinja {

namespace {

constexpr int64_t kMaxRange = 100'000;  // the limit of Jinja's sandbox

Value raise_exception(Interpreter& in, const Value&, const Arguments& arguments) {
  const auto bound = arguments.bind("raise_exception", {"message"});
  const Value message = bound[0] ? to_string(in.heap(), *bound[0]) : in.heap().string("");
  fail(ErrorCode::kInvalidArgument, "the chat template refuses this conversation: {}",
       message.text().substr(0, 500));
}

Value range(Interpreter& in, const Value&, const Arguments& arguments) {
  const auto bound = arguments.bind("range", {"start", "stop", "step"});
  if (!bound[0]) fail(ErrorCode::kInvalidArgument, "range needs an argument");
  const int64_t first = integer_argument(bound[0], 0, "range");
  const int64_t start = bound[1] ? first : 0,
                stop = bound[1] ? integer_argument(bound[1], 0, "range") : first;
  const int64_t step = integer_argument(bound[2], 1, "range");
  if (step == 0) fail(ErrorCode::kInvalidArgument, "range: the step is zero");
  List* list = in.heap().list(ListKind::kRange);
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(list->items.size()) >= kMaxRange) {
      fail(ErrorCode::kInvalidArgument, "range: more than {} numbers", kMaxRange);
    }
    in.heap().step();
    in.heap().append(*list, Value::of(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value::of(list);
}

void fill_dict(Interpreter& in, Dict& dict, const Arguments& arguments, std::string_view callee) {
  Heap& heap = in.heap();
  if (arguments.positional.size() > 1)
    fail(ErrorCode::kInvalidArgument, "{} takes one argument and names", callee);
  for (const Value& source : arguments.positional) {
    if (source.is_dict()) {
      for (const auto& [key, value] : source.dict->entries) heap.set(dict, key, value);
      continue;
    }
    for (const Value& pair : elements(heap, source)) {
      const std::vector<Value> parts = elements(heap, pair);
      if (parts.size() != 2)
        fail(ErrorCode::kInvalidArgument, "{} needs pairs, found {} values", callee, parts.size());
      heap.set(dict, parts[0], parts[1]);
    }
  }
  for (const auto& [name, value] : arguments.keywords) heap.set(dict, heap.string(name), value);
}

Value make_dict(Interpreter& in, const Value&, const Arguments& arguments) {
  Dict* dict = in.heap().make<Dict>();
  fill_dict(in, *dict, arguments, "dict");
  return Value::of(dict);
}

Value make_namespace(Interpreter& in, const Value&, const Arguments& arguments) {
  Namespace* result = in.heap().make<Namespace>();
  fill_dict(in, result->attributes, arguments, "namespace");
  for (const auto& [name, value] : result->attributes.entries) {
    if (name.is_string() && name.text().substr(0, 1) == "_") {
      fail(ErrorCode::kInvalidArgument, "namespace: names that begin with '_' cannot be set");
    }
  }
  return Value::of(result);
}

Value strftime_now(Interpreter& in, const Value&, const Arguments& arguments) {
  const String* format = string_argument(arguments.bind("strftime_now", {"format"})[0], "strftime_now");
  if (!format) fail(ErrorCode::kInvalidArgument, "strftime_now needs a format");
  if (format->text.empty()) return in.heap().string("");
  const std::time_t now = static_cast<std::time_t>(in.now());
  std::tm broken{};
  if (!localtime_r(&now, &broken))
    fail(ErrorCode::kInvalidArgument, "strftime_now: the time is out of range");
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof buffer, format->text.c_str(), &broken);
  if (size == 0)
    fail(ErrorCode::kInvalidArgument, "strftime_now: the format gives nothing or more than 4095 bytes");
  const std::string_view text(buffer, size);
  if (!is_valid_utf8(text)) fail(ErrorCode::kUnsupported, "strftime_now: the result is not UTF-8");
  return in.heap().string(text);
}

Value unsupported(Interpreter&, const Value& self, const Arguments&) {
  fail(ErrorCode::kUnsupported, "the function '{}' is not known here", self.text());
}

Value loop_cycle(Interpreter&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) fail(ErrorCode::kInvalidArgument, "loop.cycle needs values");
  return arguments.positional[static_cast<size_t>(self.loop->index) % arguments.positional.size()];
}

Value loop_changed(Interpreter& in, const Value& self, const Arguments& arguments) {
  List* now = in.heap().list(ListKind::kTuple);
  for (const Value& value : arguments.positional) in.heap().append(*now, value);
  Loop& loop = *self.loop;
  const bool is_same = loop.has_changed && equal(in.heap(), loop.last_changed, Value::of(now));
  loop.has_changed = true;
  loop.last_changed = Value::of(now);
  return Value::of(!is_same);
}

Value make_function(Heap& heap, Function::Body body, const Value& self) {
  Function* function = heap.make<Function>();
  function->body = body;
  function->self = self;
  return Value::of(function);
}

}  // namespace

Value loop_attribute(Interpreter& interpreter, Loop& loop, std::string_view name) {
  const auto length = [&] {
    interpreter.fetch(loop, INT64_MAX - 1);
    return static_cast<int64_t>(loop.items.size());
  };
  if (name == "index") return Value::of(loop.index + 1);
  if (name == "index0") return Value::of(loop.index);
  if (name == "first") return Value::of(loop.index == 0);
  if (name == "last") return Value::of(!interpreter.fetch(loop, loop.index + 1));
  if (name == "length") return Value::of(length());
  if (name == "revindex") return Value::of(length() - loop.index);
  if (name == "revindex0") return Value::of(length() - loop.index - 1);
  if (name == "depth") return Value::of(int64_t{1});  // deeper ones belong to recursive loops
  if (name == "depth0") return Value::of(int64_t{0});
  if (name == "previtem") return loop.index > 0 ? loop.items[static_cast<size_t>(loop.index - 1)] : Value();
  if (name == "nextitem") {
    return interpreter.fetch(loop, loop.index + 1) ? loop.items[static_cast<size_t>(loop.index + 1)]
                                                   : Value();
  }
  if (name == "cycle") return make_function(interpreter.heap(), loop_cycle, Value::of(&loop));
  if (name == "changed") return make_function(interpreter.heap(), loop_changed, Value::of(&loop));
  return Value::undefined(interpreter.heap().string(name).string);
}

void define_functions(Interpreter& interpreter) {
  Heap& heap = interpreter.heap();
  const std::pair<std::string_view, Function::Body> functions[] = {{"raise_exception", raise_exception},
                                                                   {"range", range},
                                                                   {"dict", make_dict},
                                                                   {"namespace", make_namespace},
                                                                   {"strftime_now", strftime_now},
                                                                   {"lipsum", unsupported},
                                                                   {"cycler", unsupported},
                                                                   {"joiner", unsupported}};
  for (const auto& [name, body] : functions)
    interpreter.define(name, make_function(heap, body, heap.string(name)));
}

}  // namespace lowbit::jinja
