// What tests of whole models ask of the states that calibration samples have on their way through one.
#pragma once

#include "quantize/calibration_states.h"
#include "quantize/source_model.h"
#include "quantize/test_problem.h"
#include "runtime/forward.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit::testing {

// Carries between stages, kept or made anew, give the same Hessians, and the head's is that of whole runs.
inline void expect_same_states(const SourceModel& source, const std::vector<std::vector<int32_t>>& samples) {
  Machine machine;
  const OpContext ops = machine.ops();
  MemoryMeter meter;
  CalibrationStates kept(source.model, ops, samples, {.batch_size = 4}, meter);
  CalibrationStates anew(source.model, ops, samples, {.batch_size = 4, .carry_budget = 0}, meter);
  for (int64_t layer = 0; layer < source.model.layer_count(); ++layer) {
    const Block& block = source.model.block(layer);
    const std::vector<Hessian> all = kept.collect_all(block);
    for (int stage = 0; stage < 4; ++stage) {
      const Hessian a = kept.collect(block, stage), b = anew.collect(block, stage);
      EXPECT_TRUE(same_bytes(a.values, b.values)) << layer << " " << stage;
      EXPECT_TRUE(same_bytes(a.values, all[static_cast<size_t>(stage)].values)) << layer << " " << stage;
      for (CalibrationStates* states : {&kept, &anew}) {
        HessianAccumulator visited(ops, a.width());
        size_t sample = 0;
        states->visit_input(block, stage, [&](const float* rows, int64_t tokens) {
          EXPECT_EQ(tokens, static_cast<int64_t>(samples[sample++].size()));
          visited.add(rows, tokens);
        });
        EXPECT_EQ(sample, samples.size());
        EXPECT_TRUE(same_bytes(a.values, visited.finish().values)) << layer << " " << stage;
      }
      kept.advance(block, stage);
      anew.advance(block, stage);
    }
  }
  const Hessian head = kept.collect_head();
  EXPECT_TRUE(same_bytes(head.values, anew.collect_head().values));
  // The same states as those of whole runs.
  HessianAccumulator runs(ops, source.model.head_width());
  forward_windows(source.model, ops, samples, 1, DType::kF32, [&](size_t window, const float* hidden) {
    const auto tokens = static_cast<int64_t>(samples[window].size());
    std::vector<float> rows(static_cast<size_t>(tokens * source.model.head_width()));
    source.model.head_input(ops, hidden, tokens, rows.data());
    runs.add(rows.data(), tokens);
  });
  const Hessian expected = runs.finish();
  double difference = 0, most = 0;
  for (int64_t i = 0; i < expected.values.element_count(); ++i) {
    difference =
        std::max(difference, std::abs(double{float_at(head.values, i)} - float_at(expected.values, i)));
    most = std::max(most, std::abs(double{float_at(expected.values, i)}));
  }
  EXPECT_LT(difference, 1e-4 * most);
}

}  // namespace lowbit::testing
