#include "lowbit/explain.h"

#include "base/fail.h"
#include "checkpoint/inspect_source.h"
#include "format/affine.h"
#include "format/codebook.h"
#include "format/format_options.h"
#include "format/int8.h"
#include "lowbit/fields.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace lowbit {
namespace {

struct Group {
  float scale = 0;
  int zero_point = 0;
  std::vector<int> codes;
  std::vector<float> decoded;
};

// One format with its options, checked.
class Rounder {
 public:
  explicit Rounder(const ExplainOptions& options) : options_(options) {
    const std::optional<Format> format = find_format(options.format);
    if (!format) {
      fail(ErrorCode::kInvalidArgument,
           "format is \"{}\", expected affine, nf4, fp4, fp8, fp8_e5m2, log2 or int8", options.format);
    }
    format_ = *format;
    validate(format_, options.affine, options.log_base);
    bits_ = bits_of(format_).value_or(options.affine.bits);
    if (has_codebook(format_))
      levels_ = format_ == Format::kLog2 ? log_levels({bits_, options.log_base}) : levels_of(format_);
  }

  bool is_affine() const { return format_ == Format::kAffine; }
  bool is_int8() const { return format_ == Format::kInt8; }
  int bits() const { return bits_; }
  int64_t group_size(int64_t width) const {
    return is_int8() ? width : effective_group_size(width, options_.affine.group_size);
  }
  // Of a scale and, where it is affine, of a zero point.
  int overhead_bits() const { return !is_affine() ? 32 : options_.affine.sym ? 16 : 16 + bits_; }

  Group round(std::span<const float> values) const {
    Group group;
    if (is_int8()) {
      const Int8Grid grid = int8_grid(largest_magnitude(values), DType::kF32);
      std::vector<int8_t> codes(values.size());
      encode_int8(values, grid.factor, codes.data());
      group.scale = grid.scale;
      group.codes.assign(codes.begin(), codes.end());
      for (const int code : group.codes) group.decoded.push_back(grid.scale * static_cast<float>(code));
      return group;
    }
    if (has_codebook(format_)) {
      std::vector<uint8_t> codes(values.size());
      group.scale = encode_group(levels_, values, codes.data(), 1);
      group.codes.assign(codes.begin(), codes.end());
      for (const int code : group.codes)
        group.decoded.push_back(decode_code(levels_.by_code, code, group.scale));
      return group;
    }
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const AffineGrid grid = affine_grid(*low, *high, options_.affine);
    group.scale = grid.scale;
    group.zero_point = grid.zero_point;
    for (const float value : values) {
      group.codes.push_back(nearest_code(value, grid, (1 << bits_) - 1));
      group.decoded.push_back(decode_code(group.codes.back(), grid));
    }
    return group;
  }

  // Ascending. An asymmetric grid is drawn about its middle code: zero points differ between groups.
  std::vector<std::pair<int, float>> levels() const {
    std::vector<std::pair<int, float>> list;
    for (int code = 0; is_affine() && code < 1 << bits_; ++code)
      list.emplace_back(code, static_cast<float>(code - (1 << (bits_ - 1))));
    for (int code = -127; is_int8() && code <= 127; ++code) list.emplace_back(code, static_cast<float>(code));
    for (int i = 0; has_codebook(format_) && i < levels_.count; ++i)
      list.emplace_back(levels_.codes[i], levels_.values[i]);
    return list;
  }

 private:
  const ExplainOptions& options_;
  Format format_ = Format::kAffine;
  int bits_ = 4;
  Levels levels_;
};

// rows of `width` values each.
Json explained(std::span<const float> values, int64_t width, const ExplainOptions& options, int64_t shown) {
  if (values.empty()) fail(ErrorCode::kInvalidArgument, "there is no value to round");
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      fail(ErrorCode::kInvalidArgument, "value {} of {} is {}: only finite ones can be rounded", i,
           values.size(), values[i]);
  }
  const Rounder rounder(options);
  const int64_t size = rounder.group_size(width);
  Json groups = Json::array(), first = Json::array();
  std::map<int, int64_t> counts;
  double errors = 0, squares = 0, size_squares = 0, largest = 0;
  int64_t group_count = 0;
  for (int64_t begin = 0; begin < static_cast<int64_t>(values.size());) {
    const int64_t count = std::min(size, width - begin % width);
    const std::span<const float> some =
        values.subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
    const Group group = rounder.round(some);
    double worst = 0;
    for (size_t i = 0; i < some.size(); ++i) {
      const double error = double{group.decoded[i]} - double{some[i]};
      worst = std::max(worst, std::abs(error));
      errors += std::abs(error);
      squares += error * error;
      size_squares += double{some[i]} * double{some[i]};
      ++counts[group.codes[i]];
      if (static_cast<int64_t>(first.size()) < shown) {
        first.push_back(Json::Object{{"value", double{some[i]}},
                                     {"code", group.codes[i]},
                                     {"decoded", double{group.decoded[i]}},
                                     {"error", error}});
      }
    }
    Json entry(Json::Object{{"first", begin}, {"scale", double{group.scale}}});
    if (rounder.is_affine()) entry.set("zero_point", group.zero_point);
    entry.set("largest_error", worst);
    if (group_count++ < shown) groups.push_back(std::move(entry));
    largest = std::max(largest, worst);
    begin += count;
  }
  Json levels = Json::array();
  for (const auto& [code, value] : rounder.levels())
    levels.push_back(Json::Object{{"code", code}, {"value", double{value}}, {"count", counts[code]}});
  const double count = static_cast<double>(values.size());
  Json json = Json::object();
  json.set("format", options.format);
  json.set("bits", rounder.bits());
  json.set("group_size", rounder.is_int8() ? -1 : options.affine.group_size);
  json.set("values", static_cast<int64_t>(values.size()));
  json.set("bits_per_value",
           rounder.bits() + static_cast<double>(group_count) * rounder.overhead_bits() / count);
  json.set("mean_error", errors / count);
  json.set("largest_error", largest);
  json.set("relative_error", size_squares > 0 ? std::sqrt(squares / size_squares) : 0.0);
  json.set("number_of_groups", group_count);
  json.set("groups", groups);
  json.set("first", first);
  json.set("levels", levels);
  return json;
}

}  // namespace

std::string explain_json(std::span<const float> values, const ExplainOptions& options, int64_t shown) {
  return explained(values, static_cast<int64_t>(std::max<size_t>(1, values.size())), options, shown).dump(2);
}

std::string explain_tensor_json(const std::filesystem::path& path, const std::string& tensor_name,
                                int64_t rows, const ExplainOptions& options, int64_t shown) {
  if (rows < 1) fail(ErrorCode::kInvalidArgument, "rows is {}, expected 1 or more", rows);
  const Tensor tensor = find_tensor(open_inspect_source(path), tensor_name);
  if (!is_floating(tensor.dtype()) || tensor.element_count() == 0) {
    fail(ErrorCode::kInvalidArgument, "{} is {} {}: only floating values can be rounded", tensor_name,
         dtype_name(tensor.dtype()), shape_text(tensor.shape()));
  }
  const int64_t width = tensor.shape().empty() ? 1 : tensor.shape().back();
  std::vector<float> values(static_cast<size_t>(std::min(tensor.element_count(), rows * width)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = float_at(tensor, static_cast<int64_t>(i));
  Json json = explained(values, width, options, shown);
  json.set("tensor", tensor_name);
  return json.dump(2);
}

Fields option_fields(ExplainOptions& options) {
  return {{"log_base", &options.log_base, "of format log2: neighbouring values differ by this factor"}};
}

}  // namespace lowbit
