#include "ops/cuda/program_of.h"

namespace lowbit {
namespace {

// Of all weights of the layers.
struct Kept {
  int bits = 0, group_size = 0;
  bool has_zeros = false;
  bool operator==(const Kept&) const = default;
};

// False where the weight is of another format than those before it, or no program can read it.
bool take(const DecodeMatrix& from, std::optional<Kept>& common, ProgramMatrix& to) {
  Kept format{16, 0, false};
  if (const auto* quantized = std::get_if<QuantizedTensor>(from.weight)) {
    if (!quantized->column_order.empty()) return false;
    format = {quantized->bits, static_cast<int>(quantized->group_size), !quantized->zero_points.empty()};
    to.weight = static_cast<const char*>(quantized->codes.bytes());
    to.scales = static_cast<const char*>(quantized->scales.bytes());
    if (format.has_zeros) to.zeros = static_cast<const char*>(quantized->zero_points.bytes());
  } else {
    to.weight = static_cast<const char*>(std::get<Tensor>(*from.weight).bytes());
  }
  if (from.bias && !from.bias->empty()) to.bias = from.bias->data<float>();
  if (!common) common = format;
  return *common == format;
}

}  // namespace

std::unique_ptr<GpuProgram> program_of(const ModelParts& parts, const RopeTable& rope) {
  const auto* embedding = std::get_if<Tensor>(parts.embedding);
  const auto* head = std::get_if<Tensor>(parts.head);
  if (parts.layers.empty() || parts.layers.size() > static_cast<size_t>(kMostProgramLayers) || !embedding || !head) {
    return nullptr;
  }
  auto program = std::make_unique<GpuProgram>();
  GpuProgram& p = *program;
  const DecodeLayer& first = parts.layers[0];
  p.layers = static_cast<int>(parts.layers.size());
  p.hidden = static_cast<int>(first.input_norm->element_count());
  p.intermediate = static_cast<int>(out_features(*first.gate.weight));
  p.vocab = static_cast<int>(head->size(0));
  p.heads = static_cast<int>(first.attention.heads);
  p.kv_heads = static_cast<int>(first.attention.kv_heads);
  p.head_dim = static_cast<int>(first.attention.head_dim);
  p.half = static_cast<int>(rope.cosines.size(1));
  p.epsilon = first.epsilon;
  p.scale = first.attention.scale;
  p.embedding = embedding->data<uint16_t>();
  p.final_norm = parts.final_norm->data<float>();
  p.cosines = rope.cosines.data<float>();
  p.sines = rope.sines.data<float>();
  p.head.weight = static_cast<const char*>(head->bytes());
  if (parts.head_bias && !parts.head_bias->empty()) p.head.bias = parts.head_bias->data<float>();
  std::optional<Kept> format;
  for (size_t i = 0; i < parts.layers.size(); ++i) {
    const DecodeLayer& from = parts.layers[i];
    ProgramLayer& to = p.layer[i];
    const DecodeMatrix* const matrices[] = {&from.q, &from.k, &from.v, &from.o, &from.gate, &from.up, &from.down};
    for (int m = 0; m < kProgramMatrices; ++m) {
      if (!take(*matrices[m], format, to.matrix[m])) return nullptr;
    }
    to.norm[0] = from.input_norm->data<float>();
    to.norm[1] = from.post_norm->data<float>();
    to.window = from.attention.window;
  }
  p.bits = format->bits;
  p.group_size = format->group_size;
  return fits_program(p) ? std::move(program) : nullptr;
}

}  // namespace lowbit
