#include "format/nested_scales.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lowbit {
namespace {

// Decade i of seven, from 10^(i - 6) down to a tenth of it, is cut into 2^i parts (unsigned: 2^(i+1)); the
// values are their middles. In F32, rounded where the map's origin rounds (torch.linspace fuses its
// products).
DynamicMap dynamic_map(bool is_signed) {
  std::vector<float> values = {0.0f, 1.0f};
  for (int decade = 0; decade < 7; ++decade) {
    const int parts = 1 << (decade + (is_signed ? 0 : 1));
    const float power = static_cast<float>(std::pow(10.0, decade - 6));
    const float step = (1 - 0.1f) / static_cast<float>(parts);
    auto boundary = [&](int i) {
      return i < (parts + 1) / 2 ? std::fma(step, static_cast<float>(i), 0.1f)
                                 : std::fma(-step, static_cast<float>(parts - i), 1.0f);
    };
    for (int i = 0; i < parts; ++i) {
      const float value = power * ((boundary(i) + boundary(i + 1)) / 2);
      values.push_back(value);
      if (is_signed) values.push_back(-value);
    }
  }
  std::sort(values.begin(), values.end());
  DynamicMap map;
  std::copy(values.begin(), values.end(), map.begin());
  return map;
}

float table_place(float x) {
  constexpr float kPlaces = 65535;
  return -1 + 2 * std::trunc((x + 1) * 0.5f * kPlaces + 0.5f) / kPlaces;
}

}  // namespace

const DynamicMap& dynamic_map_signed() {
  static const DynamicMap map = dynamic_map(true);
  return map;
}
const DynamicMap& dynamic_map_unsigned() {
  static const DynamicMap map = dynamic_map(false);
  return map;
}

int nearest_entry(const DynamicMap& map, float x) {
  const auto upper = std::lower_bound(map.begin(), map.end(), x);  // the first that is not less
  if (upper == map.begin()) return 0;
  if (upper == map.end()) return static_cast<int>(map.size()) - 1;
  const auto lower = upper - 1;
  return static_cast<int>((x <= (*lower + *upper) / 2 ? lower : upper) - map.begin());
}

float mean_of(std::span<const float> scales) {
  if (scales.empty()) return 0;
  return static_cast<float>(std::accumulate(scales.begin(), scales.end(), 0.0) /
                            static_cast<double>(scales.size()));
}

NestedScales nested(std::span<const float> scales, float offset, NestedRounding rounding) {
  NestedScales result;
  result.map = dynamic_map_signed();
  result.offset = offset;
  result.codes.resize(scales.size());
  for (size_t first = 0; first < scales.size(); first += NestedScales::kGroupSize) {
    const size_t end = std::min(scales.size(), first + static_cast<size_t>(NestedScales::kGroupSize));
    float outer = 0;
    for (size_t i = first; i < end; ++i) outer = std::max(outer, std::abs(scales[i] - result.offset));
    result.outer_scales.push_back(outer);
    const float factor = 1 / std::max(outer, 1e-38f);
    for (size_t i = first; i < end; ++i) {
      const float x = std::clamp((scales[i] - result.offset) * factor, -1.0f, 1.0f);
      const float place = rounding == NestedRounding::kCpuTable ? table_place(x) : x;
      result.codes[i] = outer == 0 && rounding == NestedRounding::kCpuTable
                            ? uint8_t{0}
                            : static_cast<uint8_t>(nearest_entry(result.map, place));
    }
  }
  return result;
}

std::vector<float> unnested(const NestedScales& scales) {
  std::vector<float> result(scales.codes.size());
  for (size_t i = 0; i < result.size(); ++i)
    result[i] =
        scales.map[scales.codes[i]] * scales.outer_scales[i / NestedScales::kGroupSize] + scales.offset;
  return result;
}

}  // namespace lowbit
