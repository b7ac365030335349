// Methods of dicts, lists and tuples; those that would change their object throw, as in Jinja's immutable
// sandbox.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>

namespace lowbit::jinja {

namespace {

template <class Body>
struct Named {
  std::string_view name;
  Body body;
};

Value refuse_change(Interpreter&, const Value& self, const Arguments&) {
  fail(ErrorCode::kInvalidArgument,
       "a template may not change a '{}' (append, pop, update, ...): Jinja's sandbox refuses it too",
       type_name(self));
}

Value dict_get(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const auto bound = arguments.bind("get", {"key", "default"});
  if (!bound[0]) fail(ErrorCode::kInvalidArgument, "get needs a key");
  if (const Value* found = find(interpreter.heap(), *self.dict, *bound[0])) return *found;
  return bound[1] ? *bound[1] : Value::none();
}

Value view(Interpreter& interpreter, const Value& self, const Arguments& arguments, ListKind kind) {
  arguments.bind(kind == ListKind::kKeys ? "keys" : (kind == ListKind::kValues ? "values" : "items"), {});
  Heap& heap = interpreter.heap();
  List* list = heap.list(kind);
  for (const auto& [key, value] : self.dict->entries) {
    heap.append(
        *list, kind == ListKind::kItems ? heap.tuple({key, value}) : (kind == ListKind::kKeys ? key : value));
  }
  return Value::of(list);
}

Value dict_keys(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return view(interpreter, self, arguments, ListKind::kKeys);
}
Value dict_values(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return view(interpreter, self, arguments, ListKind::kValues);
}
Value dict_items(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return view(interpreter, self, arguments, ListKind::kItems);
}

Value dict_copy(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  arguments.bind("copy", {});
  Dict* copy = interpreter.heap().make<Dict>();
  interpreter.heap().charge(self.dict->entries.size() * sizeof(copy->entries[0]));
  copy->entries = self.dict->entries;
  return Value::of(copy);
}

Value list_copy(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  arguments.bind("copy", {});
  List* copy = interpreter.heap().list();
  copy->items = elements(interpreter.heap(), self);
  return Value::of(copy);
}

Value list_count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const auto bound = arguments.bind("count", {"value"});
  int64_t count = 0;
  for (const Value& element : self.list->items) {
    interpreter.heap().step();
    if (bound[0]) count += equal(interpreter.heap(), element, *bound[0]);
  }
  return Value::of(count);
}

Value list_index(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const auto bound = arguments.bind("index", {"value"});
  for (size_t i = 0; bound[0] && i < self.list->items.size(); ++i) {
    interpreter.heap().step();
    if (equal(interpreter.heap(), self.list->items[i], *bound[0])) return Value::of(static_cast<int64_t>(i));
  }
  fail(ErrorCode::kInvalidArgument, "index: the value is not in the list");
}

constexpr Named<Function::Body> kDictMethods[] = {
    {"get", dict_get},        {"keys", dict_keys},        {"values", dict_values},
    {"items", dict_items},    {"copy", dict_copy},        {"clear", refuse_change},
    {"pop", refuse_change},   {"popitem", refuse_change}, {"setdefault", refuse_change},
    {"update", refuse_change}};

constexpr Named<Function::Body> kListMethods[] = {
    {"count", list_count},      {"index", list_index},    {"copy", list_copy},
    {"append", refuse_change},  {"clear", refuse_change}, {"extend", refuse_change},
    {"insert", refuse_change},  {"pop", refuse_change},   {"remove", refuse_change},
    {"reverse", refuse_change}, {"sort", refuse_change}};

}  // namespace

Function::Body find_method(const Value& object, std::string_view name) {
  if (object.is_string()) return find_string_method(name);
  if (object.is_dict()) {
    for (const auto& method : kDictMethods) {
      if (method.name == name) return method.body;
    }
  }
  if (object.is_list() && object.list->has_index()) {
    const size_t count = object.list->list_kind == ListKind::kList ? std::size(kListMethods) : 2;
    for (size_t i = 0; i < count; ++i) {
      if (kListMethods[i].name == name) return kListMethods[i].body;
    }
  }
  return nullptr;
}

}  // namespace lowbit::jinja
