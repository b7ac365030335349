// A whole decoding step of one sequence as one kernel that stays on the GPU from the embedding to the next token: its
// blocks go through the stages of all layers together, waiting for each other between them, while weights of what
// comes next are already on their way. For the pre-norm decoder block (model/decoder_block.h).
#pragma once

#include "ops/attention_args.h"

#include <cstddef>
#include <cstdint>

namespace lowbit {

// A weight on the GPU: codes as fragments.h says, or BF16 rows.
struct ProgramMatrix {
  const char *weight = nullptr, *scales = nullptr, *zeros = nullptr;
  const float* bias = nullptr;
};

enum ProgramMatrixIndex { kProgramQ, kProgramK, kProgramV, kProgramO, kProgramGate, kProgramUp, kProgramDown, kProgramMatrices };

struct ProgramLayer {
  ProgramMatrix matrix[kProgramMatrices];
  const float* norm[2] = {};  // before qkv, before gate and up
  int64_t window = 0;
};

constexpr int kMostProgramLayers = 80;

// All pointers are to the GPU's memory, history to this machine's, pinned. Vectors are padded to 8 elements.
struct GpuProgram {
  int layers = 0, hidden = 0, intermediate = 0, vocab = 0;
  int heads = 0, kv_heads = 0, head_dim = 0, half = 0;
  int bits = 0, head_bits = 16;  // of the layers' weights; 16: BF16
  int group_size = 0;            // as kept
  float epsilon = 0, scale = 0;
  int64_t layer_bytes = 0;              // of the cache, from layer to layer
  const uint16_t* embedding = nullptr;  // BF16 [vocab, hidden]
  const float* final_norm = nullptr;
  ProgramMatrix head;
  const float *cosines = nullptr, *sines = nullptr;  // [positions, half]

  // From step to step.
  AttentionSequence* sequence = nullptr;
  void *keys = nullptr, *values = nullptr;  // of the sequence, and its capacity
  int64_t capacity = 0;
  int32_t *id = nullptr, *position = nullptr;
  int32_t* history = nullptr;  // [history_steps], see gpu_advance
  int64_t* step = nullptr;
  int history_steps = 1;

  // Scratch. counters: [kProgramCounters + kv_heads], zero before and after a step; best likewise.
  float* state = nullptr;                           // [hidden]
  uint16_t *qkv = nullptr, *attended = nullptr, *gated = nullptr;
  float* logits = nullptr;                          // [vocab]
  float* partial = nullptr;                         // [kv_heads, chunks, group, head_dim + 2]
  unsigned* counters = nullptr;
  unsigned long long* best = nullptr;

  ProgramLayer layer[kMostProgramLayers];
};

constexpr int kProgramCounters = 2;

// Whether there is such a kernel for these sizes on the current device.
bool fits_program(const GpuProgram& program);
// Queues a step: reads id, writes logits, chooses the largest, and moves on as gpu_advance does.
// there: a copy of the program in the GPU's memory.
void gpu_run_program(const GpuProgram& program, const GpuProgram* there, void* stream);

}  // namespace lowbit
