#include "model/block.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace lowbit {

Tensor moved(const Tensor& tensor, const MoveWeight& move) {
  return tensor.empty() ? tensor : std::get<Tensor>(move(tensor));
}

void Block::run(const StepInput& step, float* hidden) const {
  int64_t input_width = 0, carry_width = 0;
  bool needs_two_carries = false;
  for (const Stage& stage : stages_) {
    if (stage.reads_hidden) input_width = std::max(input_width, stage.input_width);
    carry_width = std::max(carry_width, stage.carry_width);
    needs_two_carries = needs_two_carries || stage.takes_and_leaves();
  }
  const ActivationScratch normed(*step.ops, step.tokens * input_width);
  const ActivationScratch carried(*step.ops, step.tokens * carry_width);
  std::optional<ActivationScratch> second;
  if (needs_two_carries) second.emplace(*step.ops, step.tokens * carry_width);
  Activations carry = carried.rows(), next = second ? second->rows() : carry;
  const Activations input = normed.rows();
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = stages_[i];
    const int index = static_cast<int>(i);
    if (stage.reads_hidden) prepare(index, step, hidden, input);
    finish(index, step, stage.reads_hidden ? input : carry, hidden, next);
    if (stage.carry_width > 0) std::swap(carry, next);
  }
}

}  // namespace lowbit
