#include "text/jinja_value.h"

#include "base/fail.h"
#include "text/jinja_text.h"

#include <cmath>
#include <cstring>

namespace lowbit::jinja {

namespace {

void check_depth(int depth) {
  if (depth > kMaxValueDepth) {
    fail(ErrorCode::kInvalidArgument, "a value is nested deeper than {} levels", kMaxValueDepth);
  }
}

[[noreturn]] void fail_order(const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  fail(ErrorCode::kInvalidArgument, "'{}' and '{}' have no order", type_name(a), type_name(b));
}

int three_way(double a, double b) { return a < b ? -1 : (a > b ? 1 : 0); }

int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    const int64_t x = a.as_integral(), y = b.as_integral();
    return x < y ? -1 : (x > y ? 1 : 0);
  }
  return three_way(a.as_double(), b.as_double());
}

}  // namespace

#define LOWBIT_VALUE_OF(type, member, kind_name) \
  Value Value::of(type value) {                  \
    Value result;                                \
    result.kind = ValueKind::kind_name;          \
    result.member = value;                       \
    return result;                               \
  }
LOWBIT_VALUE_OF(bool, boolean, kBool)
LOWBIT_VALUE_OF(int64_t, integer, kInteger)
LOWBIT_VALUE_OF(double, number, kFloat)
LOWBIT_VALUE_OF(const String*, string, kString)
LOWBIT_VALUE_OF(List*, list, kList)
LOWBIT_VALUE_OF(Dict*, dict, kDict)
LOWBIT_VALUE_OF(Namespace*, name_space, kNamespace)
LOWBIT_VALUE_OF(Macro*, macro, kMacro)
LOWBIT_VALUE_OF(Loop*, loop, kLoop)
LOWBIT_VALUE_OF(Function*, function, kFunction)
#undef LOWBIT_VALUE_OF

Value Value::none() {
  Value result;
  result.kind = ValueKind::kNone;
  return result;
}

void Heap::charge(size_t bytes) {
  bytes_ += bytes;
  if (bytes_ > limits_.bytes) {
    fail(ErrorCode::kInvalidArgument, "the template needs more than {} MiB of memory", limits_.bytes >> 20);
  }
}

void Heap::step(uint64_t count) {
  steps_ += count;
  if (steps_ > limits_.steps) {
    fail(ErrorCode::kInvalidArgument, "the template takes more than {} steps: does it loop without end?",
         limits_.steps);
  }
}

Value Heap::string(std::string_view text) {
  charge(text.size());
  String* string = make<String>();
  string->text = text;
  string->length = count_code_points(text);
  return Value::of(string);
}

List* Heap::list(ListKind kind) {
  List* list = make<List>();
  list->list_kind = kind;
  return list;
}

void Heap::append(List& list, Value value) {
  charge(2 * sizeof(Value));
  list.items.push_back(value);
}

Value Heap::tuple(std::initializer_list<Value> values) {
  List* result = list(ListKind::kTuple);
  for (const Value& value : values) append(*result, value);
  return Value::of(result);
}

void Heap::set(Dict& dict, Value key, Value value) {
  if ((key.is_list() && key.list->list_kind == ListKind::kList) || key.is_dict()) {
    fail(ErrorCode::kInvalidArgument, "a '{}' cannot be the key of a dict", type_name(key));
  }
  if (const Value* existing = find(*this, dict, key)) {
    *const_cast<Value*>(existing) = value;
    return;
  }
  charge(4 * sizeof(Value));
  dict.entries.emplace_back(key, value);
}

Value from_json(Heap& heap, const Json& json, Trust trust) {
  heap.step();
  if (json.is_null()) return Value::none();
  if (json.is_bool()) return Value::of(json.as_bool());
  if (json.is_integer()) return Value::of(json.as_integer());
  if (json.is_number()) return Value::of(json.as_number());
  if (json.is_string()) {
    TextBuilder text(heap);
    text.append(json.as_string(), trust == Trust::kUser);
    return text.finish();
  }
  if (json.is_array()) {
    List* list = heap.list();
    for (const Json& element : json.as_array()) heap.append(*list, from_json(heap, element, trust));
    return Value::of(list);
  }
  Dict* dict = heap.make<Dict>();
  for (const auto& [key, element] : json.as_object()) {
    TextBuilder name(heap);
    name.append(key, trust == Trust::kUser);
    heap.charge(4 * sizeof(Value));
    dict->entries.emplace_back(name.finish(), from_json(heap, element, trust));  // keys of a Json are unique
  }
  return Value::of(dict);
}

const char* type_name(const Value& value) {
  switch (value.kind) {
    case ValueKind::kUndefined:
      return "Undefined";
    case ValueKind::kNone:
      return "NoneType";
    case ValueKind::kBool:
      return "bool";
    case ValueKind::kInteger:
      return "int";
    case ValueKind::kFloat:
      return "float";
    case ValueKind::kString:
      return "str";
    case ValueKind::kDict:
      return "dict";
    case ValueKind::kNamespace:
      return "Namespace";
    case ValueKind::kMacro:
      return "Macro";
    case ValueKind::kLoop:
      return "LoopContext";
    case ValueKind::kFunction:
      return "function";
    case ValueKind::kList:
      break;
  }
  switch (value.list->list_kind) {
    case ListKind::kList:
      return "list";
    case ListKind::kTuple:
      return "tuple";
    case ListKind::kRange:
      return "range";
    case ListKind::kGenerator:
      return "generator";
    case ListKind::kKeys:
      return "dict_keys";
    case ListKind::kValues:
      return "dict_values";
    case ListKind::kItems:
      return "dict_items";
  }
  return "?";
}

bool is_true(const Value& value) {
  switch (value.kind) {
    case ValueKind::kUndefined:
    case ValueKind::kNone:
      return false;
    case ValueKind::kBool:
      return value.boolean;
    case ValueKind::kInteger:
      return value.integer != 0;
    case ValueKind::kFloat:
      return value.number != 0;
    case ValueKind::kString:
      return !value.text().empty();
    case ValueKind::kList:
      return value.list->list_kind == ListKind::kGenerator || !value.list->items.empty();
    case ValueKind::kDict:
      return !value.dict->entries.empty();
    default:
      return true;
  }
}

bool equal(Heap& heap, const Value& a, const Value& b, int depth) {
  check_depth(depth);
  if (a.is_number() && b.is_number()) {
    return compare_numbers(a, b) == 0 && !std::isnan(a.as_double()) && !std::isnan(b.as_double());
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case ValueKind::kUndefined:
    case ValueKind::kNone:
      return true;
    case ValueKind::kString:
      if (a.text().size() != b.text().size()) return false;
      heap.scan(a.text().size());
      return a.text() == b.text();
    case ValueKind::kList: {
      if (a.list == b.list) return true;
      if (a.list->list_kind != b.list->list_kind || a.list->items.size() != b.list->items.size())
        return false;
      for (size_t i = 0; i < a.list->items.size(); ++i) {
        heap.step();
        if (!equal(heap, a.list->items[i], b.list->items[i], depth + 1)) return false;
      }
      return true;
    }
    case ValueKind::kDict: {
      if (a.dict == b.dict) return true;
      if (a.dict->entries.size() != b.dict->entries.size()) return false;
      for (const auto& [key, value] : a.dict->entries) {
        const Value* other = find(heap, *b.dict, key);
        if (!other || !equal(heap, value, *other, depth + 1)) return false;
      }
      return true;
    }
    case ValueKind::kFunction:
      return false;  // a bound method is made anew at each access
    default:
      return a.macro == b.macro;
  }
}

int compare(Heap& heap, const Value& a, const Value& b, int depth) {
  check_depth(depth);
  if (a.is_number() && b.is_number()) return compare_numbers(a, b);
  if (a.is_string() && b.is_string()) {
    heap.scan(std::min(a.text().size(), b.text().size()));
    return a.text().compare(b.text());  // bytes of UTF-8 order as code points do
  }
  if (a.is_list() && b.is_list() && a.list->list_kind == b.list->list_kind &&
      a.list->list_kind <= ListKind::kTuple) {
    const std::vector<Value>&x = a.list->items, &y = b.list->items;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      heap.step();
      if (!equal(heap, x[i], y[i], depth + 1)) return compare(heap, x[i], y[i], depth + 1);
    }
    return x.size() < y.size() ? -1 : (x.size() > y.size() ? 1 : 0);
  }
  fail_order(a, b);
}

const Value* find(Heap& heap, const Dict& dict, const Value& key) {
  if (key.is_string()) return find(heap, dict, key.text());
  heap.step(1 + dict.entries.size() / 16);
  for (const auto& [name, value] : dict.entries) {
    if (equal(heap, name, key)) return &value;
  }
  return nullptr;
}

const Value* find(Heap& heap, const Dict& dict, std::string_view key) {
  heap.step(dict.entries.size() / 16);
  for (const auto& [name, value] : dict.entries) {
    if (name.is_string() && name.text() == key) return &value;
  }
  return nullptr;
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  switch (container.kind) {
    case ValueKind::kUndefined:
      return false;
    case ValueKind::kString:
      if (!item.is_string()) {
        fail(ErrorCode::kInvalidArgument, "'in <string>' needs a string on its left, found '{}'",
             type_name(item));
      }
      return find_text(heap, container.text(), item.text(), 0) != std::string_view::npos;
    case ValueKind::kDict:
      return find(heap, *container.dict, item) != nullptr;
    case ValueKind::kList: {
      for (const Value& element : container.list->items) {
        heap.step();
        if (equal(heap, element, item)) return true;
      }
      return false;
    }
    default:
      fail(ErrorCode::kInvalidArgument, "'{}' cannot be searched with 'in'", type_name(container));
  }
}

int64_t length(const Value& value) {
  switch (value.kind) {
    case ValueKind::kUndefined:
      return 0;
    case ValueKind::kString:
      return value.string->length;
    case ValueKind::kDict:
      return static_cast<int64_t>(value.dict->entries.size());
    case ValueKind::kList:
      if (value.list->list_kind != ListKind::kGenerator)
        return static_cast<int64_t>(value.list->items.size());
      break;
    default:
      break;
  }
  fail(ErrorCode::kInvalidArgument, "a '{}' has no length", type_name(value));
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.is_string() || value.is_list() || value.is_dict();
}

std::vector<Value> elements(Heap& heap, const Value& value) {
  std::vector<Value> result;
  switch (value.kind) {
    case ValueKind::kUndefined:
      return result;
    case ValueKind::kList: {
      heap.step(value.list->items.size() / 64);
      heap.charge(value.list->items.size() * sizeof(Value));
      if (value.list->list_kind == ListKind::kGenerator) {
        result.swap(value.list->items);
      } else {
        result = value.list->items;
      }
      return result;
    }
    case ValueKind::kDict:
      heap.charge(value.dict->entries.size() * sizeof(Value));
      for (const auto& entry : value.dict->entries) result.push_back(entry.first);
      return result;
    case ValueKind::kString: {
      const std::string_view text = value.text();
      for (size_t begin = 0; begin < text.size();) {
        heap.step();
        const size_t end = next_code_point(text, begin);
        result.push_back(slice_text(heap, *value.string, begin, end));
        begin = end;
      }
      return result;
    }
    default:
      fail(ErrorCode::kInvalidArgument, "a '{}' cannot be walked over", type_name(value));
  }
}

void fail_undefined(const Value& value) {
  if (value.undefined_name) {
    fail(ErrorCode::kInvalidArgument, "'{}' is undefined", value.undefined_name->text.substr(0, 100));
  }
  fail(ErrorCode::kInvalidArgument, "the value is undefined");
}

}  // namespace lowbit::jinja
