#include "base/fields.h"

#include "base/fail.h"

#include <limits>

namespace lowbit {
namespace {

template <class T>
Json to_json(const T& value) {
  if constexpr (std::is_same_v<T, float>) {
    return Json(std::stod(fmt::format("{}", value)));  // 0.05f reads as 0.05, not 0.05000000074505806
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    Json array = Json::array();
    for (const std::string& element : value) array.push_back(Json(element));
    return array;
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    Json array = Json::array();
    for (const int64_t element : value) array.push_back(Json(element));
    return array;
  } else if constexpr (std::is_same_v<T, std::optional<bool>>) {
    return value ? Json(*value) : Json();
  } else if constexpr (std::is_same_v<T, Bytes>) {
    return Json(value.count);
  } else {
    return Json(value);
  }
}

template <class T>
void from_json(T& value, const Json& json) {
  if constexpr (std::is_same_v<T, bool>) {
    value = json.as_bool();
  } else if constexpr (std::is_same_v<T, std::optional<bool>>) {
    if (json.is_null()) {
      value.reset();
    } else {
      value = json.as_bool();
    }
  } else if constexpr (std::is_same_v<T, Bytes>) {
    value = json.is_string() ? parse_bytes(json.as_string()) : parse_bytes(json.dump());
  } else if constexpr (std::is_integral_v<T>) {
    const int64_t number = json.as_integer();
    if (!std::in_range<T>(number)) fail(ErrorCode::kInvalidArgument, "{} is out of range", number);
    value = static_cast<T>(number);
  } else if constexpr (std::is_floating_point_v<T>) {
    value = static_cast<T>(json.as_number());
  } else if constexpr (std::is_same_v<T, std::string>) {
    value = json.as_string();
  } else if constexpr (std::is_same_v<T, std::vector<int64_t>>) {
    value.clear();
    for (const Json& element : json.as_array()) value.push_back(element.as_integer());
  } else {
    value.clear();
    for (const Json& element : json.as_array()) value.push_back(element.as_string());
  }
}

}  // namespace

Json fields_to_json(const Fields& fields) {
  Json object = Json::object();
  for (const Field& field : fields) {
    object.set(field.name, std::visit([](auto* value) { return to_json(*value); }, field.value));
  }
  return object;
}

void fields_from_json(const Fields& fields, const Json& object, std::string_view where) {
  for (const auto& [key, json] : object.as_object()) {
    const Field* found = nullptr;
    for (const Field& field : fields) {
      if (field.name == key) found = &field;
    }
    if (!found) fail(ErrorCode::kInvalidArgument, "{}: there is no option \"{}\"", where, key);
    try {
      std::visit([&json = json](auto* value) { from_json(*value, json); }, found->value);
    } catch (const Error& error) {
      fail(ErrorCode::kInvalidArgument, "{}: {}: {}", where, key, error.what());
    }
  }
}

}  // namespace lowbit
