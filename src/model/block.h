// A transformer block as a list of stages. A stage is one or more linear layers that read the same input,
// with what comes before them (norm) and after them (attention, activation, residual). runtime/ runs the
// stages through; quantize/ looks at the input of each, replaces its weights, and goes on.
//
// Between stages a block carries `hidden` [tokens, hidden_size] and, after some stages, `carry` [tokens,
// carry_width]:
//
//   qkv      input = norm(hidden)   carry  = attention(...)
//   o        input = carry          hidden += o(input)
//   gate_up  input = norm(hidden)   carry  = silu(gate) * up
//   down     input = carry          hidden += down(input)
//
// A stage may both take a carry and leave one; what it leaves is at most hidden_size wide, so that quantize/
// can keep it. Where attention and MLP read the same hidden state, the MLP's last stage so leaves what
// attention reads:
//
//   up       input = norm(hidden)   carry  = gelu(up)
//   down     input = carry          carry  = attention's norm(hidden), hidden += down(input)
//   qkv      input = carry          carry  = attention(...)
//   o        input = carry          hidden += o(input)
#pragma once

#include "format/weight.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lowbit {

struct Linear {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  Weight weight;       // [out, in]
  Tensor bias;         // F32 [out], or empty
};

struct Stage {
  std::string_view name;     // "qkv"
  std::vector<int> linears;  // indices into Block::linears
  int64_t input_width = 0;
  bool reads_hidden = false;  // prepare() computes the input from hidden; otherwise the carry is the input
  int64_t carry_width = 0;    // of what finish() leaves in carry; 0: nothing, it adds to hidden alone

  bool takes_and_leaves() const { return !reads_hidden && carry_width > 0; }
};

// Angles of all layers, and of those with a window where these have their own; empty without RoPE.
struct RopeTables {
  RopeTable all, windowed;
};

// The tokens of one step: ragged sequences whose rows stand one after the other.
struct StepInput {
  const OpContext* ops = nullptr;
  int64_t tokens = 0;
  const int32_t* positions = nullptr;  // [tokens], where the operators compute
  const RopeTables* rope = nullptr;    // cover all positions
  AttentionBatch sequences;
  int64_t layer_offset = 0;  // of this block's caches, see AttentionShape
  DType cache_dtype = DType::kF32;
  MatmulMode mode = MatmulMode::kPrefill;
  // Decoding: where blocks leave hidden to each other, or null, and the norm that reads it behind this block.
  KeptRows* kept = nullptr;
  const Tensor* next_norm = nullptr;
};

// Where a weight goes: to a GPU's memory, say. Vectors (norms and biases) are weights too.
using MoveWeight = std::function<Weight(const Weight&)>;
Tensor moved(const Tensor& tensor, const MoveWeight& move);  // an empty one stays empty

struct Norm;

class Block {
 public:
  virtual ~Block() = default;

  // The same block with its weights elsewhere.
  virtual std::unique_ptr<Block> moved(const MoveWeight& move) const = 0;

  // input [tokens, input_width] from hidden; only for stages that read hidden.
  virtual void prepare(int stage, const StepInput& step, const float* hidden, Activations input) const = 0;
  // Runs the stage's linears on input and what follows them. carry may not overlap input.
  virtual void finish(int stage, const StepInput& step, ConstActivations input, float* hidden,
                      Activations carry) const = 0;

  const std::vector<Stage>& stages() const { return stages_; }
  std::vector<Linear>& linears() { return linears_; }
  const std::vector<Linear>& linears() const { return linears_; }

  // The norm of hidden that its first kernel takes part in where kept rows are used (StepInput::kept), if
  // that stays where it is; or null.
  virtual const Tensor* first_norm() const { return nullptr; }

  // The norm of hidden whose output is the input of this stage, and nothing else's; null where there is none.
  virtual Norm* input_norm(int /*stage*/) { return nullptr; }

  // Whether what a run queues on a GPU finds the same weights in the same place each time, so that it can be
  // recorded.
  virtual bool has_fixed_weights() const { return true; }

  // All stages. hidden: F32 [tokens, hidden_size], in and out.
  virtual void run(const StepInput& step, float* hidden) const;

 protected:
  std::vector<Stage> stages_;
  std::vector<Linear> linears_;
};

}  // namespace lowbit
