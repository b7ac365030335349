// Filters of lists and dicts.
#include "base/fail.h"
#include "text/jinja_interpreter.h"

#include <algorithm>

namespace lowbit::jinja {

namespace {

using Args = const Arguments&;

Value make_list(Interpreter& in, const std::vector<Value>& values, ListKind kind) {
  List* list = in.heap().list(kind);
  for (const Value& value : values) in.heap().append(*list, value);
  return Value::of(list);
}

// The value under a path like "function.name" or "0"; an empty path gives the value itself.
class AttributeGetter {
 public:
  AttributeGetter(Interpreter& in, const Value* path) : in_(in) {
    if (!path || path->is_none()) return;
    if (!path->is_string()) {
      parts_.push_back(*path);
      return;
    }
    const String dot = make_dot();
    for (const Value& part : split(in.heap(), *path->string, &dot, -1).list->items) {
      const bool is_index = all_of(*part.string, [](char32_t c) { return c >= '0' && c <= '9'; });
      if (is_index && part.text().size() > 9)
        fail(ErrorCode::kInvalidArgument, "an index of {} digits", part.text().size());
      parts_.push_back(is_index ? Value::of(static_cast<int64_t>(std::stoll(part.string->text))) : part);
    }
  }

  Value operator()(Value value, const Value* default_value = nullptr) const {
    for (const Value& part : parts_) {
      in_.heap().step();
      value = in_.item(value, part);
      if (value.is_undefined() && default_value && !default_value->is_none()) value = *default_value;
    }
    return value;
  }

 private:
  static String make_dot() {
    String dot;
    dot.text = ".";
    dot.length = 1;
    return dot;
  }

  Interpreter& in_;
  std::vector<Value> parts_;
};

Value without_case(Interpreter& in, const Value& value) {
  return value.is_string() ? change_case(in.heap(), *value.string, Case::kLower) : value;
}

struct Keyed {
  Value key, value;
};

// Pairs each element with what it is ordered or told apart by.
std::vector<Keyed> keyed(Interpreter& in, const Value& sequence, const Value* attribute,
                         bool case_sensitive) {
  const AttributeGetter get(in, attribute);
  std::vector<Keyed> result;
  for (const Value& value : elements(in.heap(), sequence)) {
    in.heap().charge(sizeof(Keyed));
    const Value key = get(value);
    result.push_back({case_sensitive ? key : without_case(in, key), value});
  }
  return result;
}

// Merge sort, because comparing may throw and must see a consistent order; stable, as Python's.
void sort_keyed(Interpreter& in, std::vector<Keyed>& entries, bool reverse) {
  std::vector<Keyed> merged(entries.size());
  for (size_t run = 1; run < entries.size(); run *= 2) {
    for (size_t begin = 0; begin < entries.size(); begin += 2 * run) {
      const size_t middle = std::min(begin + run, entries.size()),
                   end = std::min(begin + 2 * run, entries.size());
      size_t left = begin, right = middle;
      for (size_t out = begin; out < end; ++out) {
        bool takes_right = left == middle;
        if (left < middle && right < end) {
          in.heap().step();
          const Keyed &a = entries[left], &b = entries[right];
          takes_right = reverse ? holds(in.heap(), Operator::kLess, a.key, b.key)
                                : holds(in.heap(), Operator::kLess, b.key, a.key);
        }
        merged[out] = takes_right ? entries[right++] : entries[left++];
      }
    }
    entries.swap(merged);
  }
}

Value sort_filter(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("sort", {"reverse", "case_sensitive", "attribute"});
  if (bound[2] && bound[2]->is_string() && bound[2]->text().find(',') != std::string_view::npos) {
    fail(ErrorCode::kUnsupported, "sort by more than one attribute");
  }
  std::vector<Keyed> entries = keyed(in, value, bound[2], bool_argument(bound[1], false));
  // Jinja orders lists of keys, and equal elements of lists are not asked for their order: undefined ones may
  // be alike.
  for (Keyed& entry : entries) entry.key = in.heap().tuple({entry.key});
  sort_keyed(in, entries, bool_argument(bound[0], false));
  List* list = in.heap().list();
  for (const Keyed& entry : entries) in.heap().append(*list, entry.value);
  return Value::of(list);
}

Value dictsort(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const String* by = string_argument(bound[1], "dictsort");
  if (by && by->text != "key" && by->text != "value") {
    fail(ErrorCode::kInvalidArgument, "dictsort: by must be 'key' or 'value'");
  }
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_dict())
    fail(ErrorCode::kInvalidArgument, "dictsort needs a dict, found '{}'", type_name(value));
  std::vector<Keyed> entries;
  for (const auto& [key, element] : value.dict->entries) {
    in.heap().charge(sizeof(Keyed));
    const Value& order = by && by->text == "value" ? element : key;
    entries.push_back(
        {bool_argument(bound[0], false) ? order : without_case(in, order), in.heap().tuple({key, element})});
  }
  sort_keyed(in, entries, bool_argument(bound[2], false));
  List* list = in.heap().list();
  for (const Keyed& entry : entries) in.heap().append(*list, entry.value);
  return Value::of(list);
}

Value unique(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> seen, result;
  for (const Keyed& entry : keyed(in, value, bound[1], bool_argument(bound[0], false))) {
    const bool is_new = std::none_of(seen.begin(), seen.end(), [&](const Value& other) {
      in.heap().step();
      return equal(in.heap(), other, entry.key);
    });
    if (!is_new) continue;
    seen.push_back(entry.key);
    result.push_back(entry.value);
  }
  return make_list(in, result, ListKind::kGenerator);
}

template <bool wants_larger>
Value extreme(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("min", {"case_sensitive", "attribute"});
  const std::vector<Keyed> entries = keyed(in, value, bound[1], bool_argument(bound[0], false));
  const Keyed* best = nullptr;
  for (const Keyed& entry : entries) {
    in.heap().step();
    if (!best || holds(in.heap(), wants_larger ? Operator::kGreater : Operator::kLess, entry.key, best->key))
      best = &entry;
  }
  return best ? best->value : Value();
}

Value sum(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("sum", {"attribute", "start"});
  const AttributeGetter get(in, bound[0]);
  Value total = bound[1] ? *bound[1] : Value::of(int64_t{0});
  if (total.is_string()) fail(ErrorCode::kInvalidArgument, "sum adds numbers: use join for strings");
  for (const Value& element : elements(in.heap(), value)) {
    in.heap().step();
    total = binary(in.heap(), Operator::kAdd, total, get(element));
  }
  return total;
}

Value first(Interpreter& in, const Value& value, Args args) {
  args.bind("first", {});
  if (value.is_string() && !value.text().empty()) {
    return slice_text(in.heap(), *value.string, 0, next_code_point(value.text(), 0));
  }
  const std::vector<Value> all = elements(in.heap(), value);
  return all.empty() ? Value() : all.front();
}

Value last(Interpreter& in, const Value& value, Args args) {
  args.bind("last", {});
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_list() && value.list->list_kind == ListKind::kGenerator) {
    fail(ErrorCode::kInvalidArgument, "last needs a sequence, found a generator");
  }
  const std::vector<Value> all = elements(in.heap(), value);
  return all.empty() ? Value() : all.back();
}

Value list_filter(Interpreter& in, const Value& value, Args args) {
  args.bind("list", {});
  return make_list(in, elements(in.heap(), value), ListKind::kList);
}

Value reverse_filter(Interpreter& in, const Value& value, Args args) {
  args.bind("reverse", {});
  std::vector<Value> all = elements(in.heap(), value);
  std::reverse(all.begin(), all.end());
  if (!value.is_string()) return make_list(in, all, ListKind::kGenerator);
  TextBuilder out(in.heap());
  for (const Value& character : all) out.append(character);
  return out.finish();
}

Value join_filter(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("join", {"d", "attribute"});
  const AttributeGetter get(in, bound[1]);
  TextBuilder out(in.heap());
  bool is_first = true;
  for (const Value& element : elements(in.heap(), value)) {
    in.heap().step();
    if (!is_first && bound[0]) out.append(*bound[0]);
    is_first = false;
    out.append(get(element));
  }
  return out.finish();
}

Value items(Interpreter& in, const Value& value, Args args) {
  args.bind("items", {});
  std::vector<Value> pairs;
  if (!value.is_undefined()) {
    if (!value.is_dict())
      fail(ErrorCode::kInvalidArgument, "items needs a dict, found '{}'", type_name(value));
    for (const auto& [key, element] : value.dict->entries) pairs.push_back(in.heap().tuple({key, element}));
  }
  return make_list(in, pairs, ListKind::kGenerator);
}

// map(attribute=...) or map("filter", arguments...)
Value map_filter(Interpreter& in, const Value& value, Args args) {
  std::vector<Value> result;
  if (!is_true(value)) return make_list(in, result, ListKind::kGenerator);
  if (args.positional.empty()) {
    const auto bound = args.bind("map", {"attribute", "default"});
    if (!bound[0]) fail(ErrorCode::kInvalidArgument, "map needs a filter or attribute=");
    const AttributeGetter get(in, bound[0]);
    for (const Value& element : elements(in.heap(), value)) result.push_back(get(element, bound[1]));
    return make_list(in, result, ListKind::kGenerator);
  }
  const String* name = string_argument(&args.positional[0], "map");
  if (!name) fail(ErrorCode::kInvalidArgument, "map needs the name of a filter");
  Arguments rest = args;
  rest.positional.erase(rest.positional.begin());
  for (const Value& element : elements(in.heap(), value)) {
    in.heap().step();
    result.push_back(in.apply_filter(name->text, element, rest));
  }
  return make_list(in, result, ListKind::kGenerator);
}

// select("test", ...), selectattr("attribute", "test", ...) and their opposites; without a test: truth.
template <bool wants, bool by_attribute>
Value select_filter(Interpreter& in, const Value& value, Args args) {
  std::vector<Value> result;
  if (!is_true(value)) return make_list(in, result, ListKind::kGenerator);
  Arguments rest = args;
  const auto take = [&rest]() {
    const Value taken = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return taken;
  };
  if (by_attribute && rest.positional.empty())
    fail(ErrorCode::kInvalidArgument, "selectattr needs an attribute");
  const Value path = by_attribute ? take() : Value::none();
  const AttributeGetter get(in, &path);
  const String* test = nullptr;
  if (!rest.positional.empty()) {
    const Value name = take();
    test = string_argument(&name, "select");
  }
  for (const Value& element : elements(in.heap(), value)) {
    in.heap().step();
    const Value tested = get(element);
    if ((test ? in.apply_test(test->text, tested, rest) : is_true(tested)) == wants)
      result.push_back(element);
  }
  return make_list(in, result, ListKind::kGenerator);
}

Value batch(Interpreter& in, const Value& value, Args args) {
  const auto bound = args.bind("batch", {"linecount", "fill_with"});
  const int64_t size = integer_argument(bound[0], 0, "batch");
  if (size < 1 || size > 1'000'000) fail(ErrorCode::kInvalidArgument, "batch: a size of {}", size);
  std::vector<Value> groups;
  for (const Value& element : elements(in.heap(), value)) {
    in.heap().step();
    if (groups.empty() || static_cast<int64_t>(groups.back().list->items.size()) == size) {
      groups.push_back(Value::of(in.heap().list()));
    }
    in.heap().append(*groups.back().list, element);
  }
  if (!groups.empty() && bound[1] && !bound[1]->is_none()) {
    while (static_cast<int64_t>(groups.back().list->items.size()) < size) {
      in.heap().step();
      in.heap().append(*groups.back().list, *bound[1]);
    }
  }
  return make_list(in, groups, ListKind::kGenerator);
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"batch", batch},
    {"dictsort", dictsort},
    {"first", first},
    {"items", items},
    {"join", join_filter},
    {"last", last},
    {"list", list_filter},
    {"map", map_filter},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select_filter<false, false>},
    {"rejectattr", select_filter<false, true>},
    {"reverse", reverse_filter},
    {"select", select_filter<true, false>},
    {"selectattr", select_filter<true, true>},
    {"sort", sort_filter},
    {"sum", sum},
    {"unique", unique},
};

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  for (const auto& [filter_name, filter] : kFilters) {
    if (filter_name == name) return filter;
  }
  return nullptr;
}

}  // namespace lowbit::jinja
