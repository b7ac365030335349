// What of a model stays in a GPU's memory, decided once, before anything is moved, from sizes alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowbit {

struct GpuSizes {
  uint64_t frame = 0;            // what stands around the layers: embedding, head, final norm
  std::vector<uint64_t> layers;  // weights of each
  uint64_t cache = 0;            // keys and values of `tokens` tokens
  uint64_t work = 0;             // the most that computing takes beside them, or loading
  int64_t tokens = 0;            // over all sequences
};

struct GpuPlan {
  bool fits = false;
  // Layers that are brought from this machine's memory whenever they are run, through two buffers, each as
  // large as the largest of them; in ascending order, spread evenly, so that copies hide behind the layers
  // between. Where the model does not fit: all of them.
  std::vector<int64_t> streamed;
  uint64_t buffer_bytes = 0;    // of one
  uint64_t streamed_bytes = 0;  // of the layers
  uint64_t needed_bytes = 0;    // of the GPU's memory, all in all
};

// With as few streamed layers as `available` bytes allow.
GpuPlan plan_layers(const GpuSizes& sizes, uint64_t available);
// With `count` of them. Fewer than three make no sense: two buffers would hold them.
GpuPlan plan_with_streamed(const GpuSizes& sizes, int64_t count);

// Why nothing fits, and what helps.
std::string shortage_text(const GpuSizes& sizes, uint64_t available, uint64_t limit);

}  // namespace lowbit
