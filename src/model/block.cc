#include "model/block.h"

#include <algorithm>

namespace lowbit {

void Block::run(const StepInput& step, float* hidden) const {
  int64_t input_width = 0, carry_width = 0;
  for (const Stage& stage : stages_) {
    if (stage.reads_hidden) input_width = std::max(input_width, stage.input_width);
    carry_width = std::max(carry_width, stage.carry_width);
  }
  const size_t row = static_cast<size_t>(step.tokens) * sizeof(float);
  const Scratch normed = step.ops->workspace->take(row * static_cast<size_t>(input_width));
  const Scratch carried = step.ops->workspace->take(row * static_cast<size_t>(carry_width));
  float* carry = carried.as<float>();
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const int index = static_cast<int>(i);
    if (stage.reads_hidden) prepare(index, step, hidden, normed.as<float>());
    finish(index, step, stage.reads_hidden ? normed.as<float>() : carry, hidden, carry);
  }
}

}  // namespace lowbit
