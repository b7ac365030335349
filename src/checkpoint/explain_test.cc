#include "lowbit/explain.h"

#include "base/json.h"
#include "format/codebook.h"
#include "io/safetensors.h"
#include "support.h"

#include <cmath>
#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;

const float kValues[] = {0.1f, -1.7f, 0.02f, 0.9f, 1.7f, -0.4f};

TEST(Explain, GivesTheCodesOfTheFormat) {
  for (const std::string format : {"nf4", "fp4", "fp8", "fp8_e5m2", "log2"}) {
    SCOPED_TRACE(format);
    ExplainOptions options{.format = format, .affine = {.group_size = 4}};
    const Json json = parse_json(explain_json(kValues, options), "json");
    const Levels levels = format == "log2" ? log_levels({4, 2}) : levels_of(*find_format(format));
    EXPECT_EQ(json.get("values").as_integer(), 6);
    EXPECT_EQ(json.get("number_of_groups").as_integer(), 2);
    int64_t counted = 0;
    for (const Json& level : json.get("levels").as_array()) counted += level.get("count").as_integer();
    EXPECT_EQ(counted, 6);
    for (size_t i = 0; i < 6; ++i) {
      const float scale = 1.7f / levels.largest;  // both groups have the same largest magnitude
      const Json& value = json.get("first").as_array()[i];
      const int code = nearest_code(levels, kValues[i] * (1 / scale));
      EXPECT_EQ(value.get("code").as_integer(), code);
      EXPECT_EQ(value.get("decoded").as_number(), double{levels.by_code[code] * scale});
      EXPECT_NEAR(value.get("error").as_number(), value.get("decoded").as_number() - double{kValues[i]},
                  1e-12);
    }
  }
}

TEST(Explain, AffineHasAZeroPoint) {
  ExplainOptions options;
  options.affine = {.bits = 8, .group_size = -1, .sym = false};
  const Json json = parse_json(explain_json(kValues, options), "json");
  const Json& group = json.get("groups").as_array()[0];
  EXPECT_EQ(group.get("zero_point").as_integer(), 127);  // 127.5, but the scale is rounded to F16
  EXPECT_NEAR(group.get("scale").as_number(), 3.4 / 255, 1e-5);
  EXPECT_LE(json.get("largest_error").as_number(), 0.51 * 3.4 / 255);
  EXPECT_EQ(json.get("levels").as_array().size(), 256u);
}

TEST(Explain, Int8HasAScalePerRow) {
  const ExplainOptions options{.format = "int8"};
  const Json json = parse_json(explain_json(kValues, options), "json");
  EXPECT_EQ(json.get("group_size").as_integer(), -1);
  EXPECT_EQ(json.get("number_of_groups").as_integer(), 1);
  EXPECT_EQ(json.get("first").as_array()[1].get("code").as_integer(), -127);
  EXPECT_EQ(json.get("first").as_array()[0].get("code").as_integer(), 7);  // 7.47
  EXPECT_LE(json.get("largest_error").as_number(), 0.501 * 1.7 / 127);
  int64_t counted = 0;
  for (const Json& level : json.get("levels").as_array()) counted += level.get("count").as_integer();
  EXPECT_EQ(counted, 6);
}

TEST(Explain, RowsOfATensorBeginGroups) {
  TemporaryFolder folder;
  Tensor tensor = Tensor::allocate(DType::kF32, {3, 5});
  for (int i = 0; i < 15; ++i) tensor.mutable_data<float>()[i] = static_cast<float>(i + 1);
  const auto file = folder.path() / "a.safetensors";
  write_safetensors(file, {{"w", tensor}});
  ExplainOptions options{.format = "fp8", .affine = {.group_size = 4}};
  const Json json = parse_json(explain_tensor_json(file, "w", 2, options), "json");
  EXPECT_EQ(json.get("values").as_integer(), 10);
  const auto& groups = json.get("groups").as_array();
  ASSERT_EQ(groups.size(), 4u);
  const double largest[] = {4, 5, 9, 10};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(groups[i].get("scale").as_number(), largest[i] / 448, 1e-7);
  EXPECT_EQ(groups[2].get("first").as_integer(), 5);
}

TEST(Explain, RefusesWhatCannotBeRounded) {
  auto refusal = [](std::span<const float> values, const ExplainOptions& options) {
    return error_of(ErrorCode::kInvalidArgument, [&] { explain_json(values, options); });
  };
  EXPECT_NE(refusal({}, {}).find("no value"), std::string::npos);
  const float bad[] = {1, NAN};
  EXPECT_NE(refusal(bad, {}).find("value 1 of 2"), std::string::npos);
  EXPECT_NE(refusal(kValues, {.format = "fp9"}).find("fp8_e5m2"), std::string::npos);
  EXPECT_NE(refusal(kValues, {.format = "log2", .affine = {.bits = 9}}).find("3 to 8"), std::string::npos);
  EXPECT_NE(refusal(kValues, {.format = "nf4", .affine = {.bits = 8}}).find("always has 4"),
            std::string::npos);
  EXPECT_NE(refusal(kValues, {.format = "fp8", .log_base = 1.5f}).find("log2"), std::string::npos);
  EXPECT_NE(refusal(kValues, {.format = "nf4", .affine = {.group_size = 0}}).find("group_size"),
            std::string::npos);
  error_of(ErrorCode::kNotFound, [&] { explain_tensor_json("/nowhere", "w", 1, {}); });
}

}  // namespace
}  // namespace lowbit
