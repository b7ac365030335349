// Values of a running template. A render owns all of them through one Heap and frees them together, so cycles
// (a namespace that holds itself, a macro in its own scope) cannot leak and no destructor recurses. The Heap
// also counts work and memory: a template that loops or doubles strings ends in an error soon.
#pragma once

#include "base/json.h"
#include "lowbit/tokenizer.h"

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowbit::jinja {

struct Limits {
  uint64_t steps = 2'000'000;            // evaluated nodes, loop turns, elements and blocks of text touched
  uint64_t bytes = uint64_t{256} << 20;  // all that a render ever allocates
  size_t output = size_t{16} << 20;      // bytes of rendered text
  int parse_height = 200;                // of a parsed expression or statement tree
  int parse_nesting = 150;               // of expressions in brackets and of blocks; a bracket counts twice
  int calls = 200;                       // macros in macros
  int evaluation = 1000;                 // nested evaluations, whatever their kind
};
inline constexpr int kMaxValueDepth = 100;  // of lists in lists, when they are printed or compared

enum class ValueKind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInteger,
  kFloat,
  kString,
  kList,
  kDict,
  kNamespace,
  kMacro,
  kLoop,
  kFunction,
};

struct Object {
  virtual ~Object() = default;
};

// UTF-8 text that remembers which of its bytes a user wrote: `user` (sorted, disjoint, not touching) follows
// the bytes through slices, joins and replacements, so that text from a message can never become a special
// token.
struct String : Object {
  std::string text;
  std::vector<TextRange> user;
  int64_t length = 0;      // code points
  bool is_markup = false;  // after `safe`: adding plain text to it escapes that text for HTML, as in Jinja

  bool is_ascii() const { return length == static_cast<int64_t>(text.size()); }
};

struct List;
struct Dict;
struct Namespace;
struct Macro;
struct Loop;
struct Function;

struct Value {
  ValueKind kind = ValueKind::kUndefined;
  union {
    const String* undefined_name = nullptr;  // what was undefined, for messages; may be null
    bool boolean;
    int64_t integer;
    double number;
    const String* string;
    List* list;
    Dict* dict;
    Namespace* name_space;
    Macro* macro;
    Loop* loop;
    Function* function;
  };

  Value() = default;
  static Value none();
  static Value of(bool value);
  static Value of(int64_t value);
  static Value of(double value);
  static Value of(const String* value);
  static Value of(List* value);
  static Value of(Dict* value);
  static Value of(Namespace* value);
  static Value of(Macro* value);
  static Value of(Loop* value);
  static Value of(Function* value);
  static Value undefined(const String* name) {
    Value value;
    value.undefined_name = name;
    return value;
  }

  bool is_undefined() const { return kind == ValueKind::kUndefined; }
  bool is_none() const { return kind == ValueKind::kNone; }
  bool is_string() const { return kind == ValueKind::kString; }
  bool is_list() const { return kind == ValueKind::kList; }
  bool is_dict() const { return kind == ValueKind::kDict; }
  bool is_float() const { return kind == ValueKind::kFloat; }
  // Python's bool is an int.
  bool is_integral() const { return kind == ValueKind::kInteger || kind == ValueKind::kBool; }
  bool is_number() const { return is_integral() || is_float(); }
  int64_t as_integral() const { return kind == ValueKind::kBool ? int64_t{boolean} : integer; }
  double as_double() const { return is_float() ? number : static_cast<double>(as_integral()); }
  std::string_view text() const { return string->text; }  // of a string
};

// Python's sequences, told apart where a template can notice: a generator is always true, has no length and
// is empty after one pass; a view of a dict has no index.
enum class ListKind : uint8_t { kList, kTuple, kRange, kGenerator, kKeys, kValues, kItems };

struct List : Object {
  ListKind list_kind = ListKind::kList;
  std::vector<Value> items;

  bool has_index() const { return list_kind <= ListKind::kRange; }
};

struct Dict : Object {
  std::vector<std::pair<Value, Value>> entries;  // in the order of insertion
};

struct Namespace : Object {
  Dict attributes;
};

class Heap {
 public:
  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // Throw kInvalidArgument when the limit is passed.
  void charge(size_t bytes);
  void step(uint64_t count = 1);
  void scan(size_t bytes) { step(1 + bytes / 256); }  // for work that grows with a text
  const Limits& limits() const { return limits_; }

  template <class T>
  T* make() {
    charge(sizeof(T) + 32);
    auto object = std::make_unique<T>();
    T* result = object.get();
    objects_.push_back(std::move(object));
    return result;
  }
  Value string(std::string_view text);
  List* list(ListKind kind = ListKind::kList);
  void append(List& list, Value value);
  Value tuple(std::initializer_list<Value> values);
  // Replaces or appends; throws when the key cannot be one (a list, a dict).
  void set(Dict& dict, Value key, Value value);

 private:
  Limits limits_;
  uint64_t steps_ = 0, bytes_ = 0;
  std::vector<std::unique_ptr<Object>> objects_;
};

// How strings of the outside become values.
enum class Trust { kTemplate, kUser };
Value from_json(Heap& heap, const Json& json, Trust trust);

const char* type_name(const Value& value);  // Python's: "str", "int", "NoneType", ...
bool is_true(const Value& value);
bool equal(Heap& heap, const Value& a, const Value& b, int depth = 0);
// Negative, zero, positive; throws for types that Python does not order.
int compare(Heap& heap, const Value& a, const Value& b, int depth = 0);
const Value* find(Heap& heap, const Dict& dict, const Value& key);
const Value* find(Heap& heap, const Dict& dict, std::string_view key);
bool contains(Heap& heap, const Value& container, const Value& item);  // item in container
int64_t length(const Value& value);                                    // throws for what has none
// What a for loop walks over: elements, keys, characters. A generator is empty afterwards. Throws when not
// iterable.
std::vector<Value> elements(Heap& heap, const Value& value);
bool is_iterable(const Value& value);

[[noreturn]] void fail_undefined(const Value& value);

}  // namespace lowbit::jinja
