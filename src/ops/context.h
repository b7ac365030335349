// What an op needs beside its tensors: threads or a GPU, scratch memory, and which kernels are wanted. Two
// models with two contexts live side by side; nothing here is global.
#pragma once

#include "base/gpu_queue.h"
#include "base/threads.h"
#include "tensor/activations.h"
#include "tensor/tensor.h"

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lowbit {

// Scratch memory that is handed back to its workspace at the end of its life; 64-byte aligned, not
// initialised. On a GPU whoever takes it next queues his work behind what is still using it.
class Workspace;
class Scratch {
 public:
  Scratch(Workspace* owner, void* data, size_t capacity) : owner_(owner), data_(data), capacity_(capacity) {}
  Scratch(Scratch&& other) noexcept
      : owner_(other.owner_), data_(std::exchange(other.data_, nullptr)), capacity_(other.capacity_) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch();

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  friend class Workspace;

  Workspace* owner_;
  void* data_;
  size_t capacity_;
};

// Keeps buffers between ops, so that a decode step allocates nothing.
class Workspace {
 public:
  Workspace() = default;  // this machine's memory
  explicit Workspace(GpuQueue& gpu) : gpu_(gpu.shared_memory()) {}
  // Takes what it needs from another one on a GPU, which outlives it, and gives it back at its end: until
  // then nobody else gets it.
  explicit Workspace(Workspace& lender) : gpu_(lender.gpu_), lender_(&lender) {}
  ~Workspace();
  Scratch take(size_t bytes);                          // kOutOfMemory
  std::optional<Scratch> take_if_there(size_t bytes);  // none where there is not so much memory
  void release();                                      // gives back all idle buffers

 private:
  friend class Scratch;
  void free_buffer(void* data, size_t capacity);

  std::shared_ptr<GpuMemory> gpu_;  // or null
  Workspace* lender_ = nullptr;
  std::mutex mutex_;
  std::vector<std::pair<size_t, void*>> idle_;
};

// Kernels forced by name: for every op that has one of that name, or per op. Empty: the first that fits.
struct KernelChoice {
  std::string all;                                         // "ref", "avx2", ...
  std::vector<std::pair<std::string, std::string>> by_op;  // {"matmul_dense", "avx2"}
};

class GpuLibraries;

// Where and with what operators compute. With a GPU, pointers and tensors that operators get lie in its
// memory unless their header says otherwise, the workspace is the GPU's, and results are there once the queue
// is waited for.
struct OpContext {
  const ThreadPool* threads = nullptr;
  Workspace* workspace = nullptr;
  const KernelChoice* kernels = nullptr;  // may be null
  GpuQueue* gpu = nullptr;                // null: the CPU
  GpuLibraries* libraries = nullptr;      // with a GPU: ops/cuda/libraries.h

  DType activations() const {
    return gpu ? DType::kBF16 : DType::kF32;
  }  // of what operators pass to each other
};

// Tensors and copies where the context's operators compute. On a GPU tensors are buffers of the workspace,
// which must outlive them: taking memory from a GPU, and giving it back, waits for all that it is doing.
Tensor allocate(const OpContext& context, DType dtype, Shape shape);
Tensor zeros(const OpContext& context, DType dtype, Shape shape);
// `values`, which must outlive it: as they are, or a copy on the GPU.
Tensor placed(const OpContext& context, std::span<const int32_t> values);
Tensor placed(const OpContext& context, std::span<const float> values);
void copy(const OpContext& context, void* to, const void* from, size_t bytes);
// From there to this machine's memory.
void copy_here(const OpContext& context, void* to, const void* from, size_t bytes);

// Operators begin their GPU's part with `if constexpr (kHasCuda) if (context.gpu) ...`, so that a build
// without CUDA needs no such kernels.

// Room for so many of them.
class ActivationScratch {
 public:
  ActivationScratch(const OpContext& context, int64_t elements)
      : dtype_(context.activations()),
        scratch_(context.workspace->take(static_cast<size_t>(elements) * dtype_size(dtype_))) {}
  Activations rows() const { return {scratch_.as<void>(), dtype_}; }

 private:
  DType dtype_;
  Scratch scratch_;
};

}  // namespace lowbit
