// compat autogptq against tests/golden/gptq, which tests/golden/make_gptq_golden.py made with numpy.
#include "base/json.h"
#include "format/bits.h"
#include "io/safetensors.h"
#include "quantize/test_problem.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;

Tensor find(const SafetensorsFile& file, const std::string& name) {
  for (const NamedTensor& entry : file.tensors) {
    if (entry.name == name) return entry.tensor;
  }
  ADD_FAILURE() << name << " is missing";
  return {};
}

TEST(CompatAutogptq, CodesEqualTheNumpyRendering) {
  const SafetensorsFile file = open_safetensors(std::filesystem::path(LOWBIT_SOURCE_DIR) / "tests" /
                                                "golden" / "gptq" / "compat.safetensors");
  Json cases;
  for (const auto& [key, text] : file.metadata) {
    if (key == "cases") cases = parse_json(text, "cases");
  }
  ASSERT_EQ(cases.size(), 10u);
  const Tensor weight = find(file, "w");
  const int64_t rows = weight.size(0), width = weight.size(1);
  const Hessian hessian = make_hessian({}, find(file, "h"), 1000);
  int64_t total = 0, different = 0;
  for (size_t index = 0; index < cases.size(); ++index) {
    const Json& json = cases.as_array()[index];
    const std::string name = fmt::format("case{}", index);
    MatrixProblem problem;
    problem.weight = weight;
    problem.affine = {static_cast<int>(json.get("bits").as_integer()),
                      static_cast<int>(json.get("group_size").as_integer()), json.get("sym").as_bool()};
    problem.as_autogptq = true;
    problem.gptq.damp_percent = 0.01f;
    problem.gptq.desc_act = json.get("desc_act").as_bool();
    problem.gptq.static_groups = json.get("static_groups").as_bool();
    problem.gptq.act_group_aware = false;
    problem.gptq.updated_groups = false;
    problem.gptq.mse = 0;
    Machine machine;
    const OpContext ops = machine.ops();
    FactorCache factors(ops, hessian);
    const QuantizedTensor result = quantize_gptq(ops, problem, factors).weight;
    const Tensor codes = find(file, name + ".codes"), g_idx = find(file, name + ".g_idx"),
                 scales = find(file, name + ".scales");
    const Tensor zeros = find(file, name + ".zeros");
    const Tensor margins = find(file, name + ".margins");
    std::vector<uint8_t> found(static_cast<size_t>(width));
    const ColumnOrder order = column_order(hessian.diagonal, result.group_size, problem.gptq);
    for (int64_t row = 0; row < rows; ++row) {
      unpack_bits(result.codes.data<uint32_t>() + row, rows, width, result.bits, found.data(), 1);
      bool is_same = true;
      // In the order of work: behind a tie that fell the other way a row goes on with other weights.
      for (int64_t step = 0; step < width; ++step) {
        const int64_t column = order.columns[static_cast<size_t>(step)], place = row * width + column;
        const int64_t position = order.position(step), group = position / result.group_size;
        ASSERT_EQ(g_idx.data<int32_t>()[column], group) << name << " column " << column;
        const int expected = codes.data<uint8_t>()[place];
        ++total;
        different += expected != found[static_cast<size_t>(position)];
        if (!is_same) continue;
        if (expected != found[static_cast<size_t>(position)]) {
          is_same = false;
          EXPECT_NEAR(expected, found[static_cast<size_t>(position)], 1)
              << name << " row " << row << " column " << column;
          EXPECT_LT(float_at(margins, place), 0.01f) << name << " row " << row << " column " << column;
        }
        const float scale = f16_to_float(result.scales.data<uint16_t>()[group * rows + row]);
        EXPECT_NEAR(scale, scales.data<float>()[group * rows + row], 1.1e-3f * scale) << name;
        if (!problem.affine.sym) {
          EXPECT_EQ(result.zero_points.data<uint8_t>()[group * rows + row],
                    zeros.data<uint8_t>()[group * rows + row])
              << name;
        }
      }
    }
  }
  EXPECT_LE(different, total / 1000) << different << " of " << total;
}

}  // namespace
}  // namespace lowbit
