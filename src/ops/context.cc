#include "ops/context.h"

#include "base/fail.h"
#include "base/memory.h"

#include <cstring>

namespace lowbit {
namespace {

// With checks every buffer is as long as asked for and used once, so that a sanitizer sees each step outside.
#if defined(LOWBIT_CHECKS)
constexpr bool kKeepsBuffers = false;
#else
constexpr bool kKeepsBuffers = true;
#endif

}  // namespace

Scratch::~Scratch() {
  if (!data_) return;
  if (!kKeepsBuffers && !owner_->gpu_) {
    free_memory(data_, capacity_);
    return;
  }
  std::lock_guard lock(owner_->mutex_);
  owner_->idle_.emplace_back(capacity_, data_);
}

Workspace::~Workspace() { release(); }

void Workspace::release() {
  std::lock_guard lock(mutex_);
  for (auto& [capacity, data] : idle_) free_buffer(data, capacity);
  idle_.clear();
}

void Workspace::free_buffer(void* data, size_t capacity) {
  if (lender_) {
    const Scratch back(lender_, data, capacity);
  } else if (gpu_) {
    gpu_->free(data);
  } else {
    free_memory(data, capacity);
  }
}

std::optional<Scratch> Workspace::take_if_there(size_t bytes) {
  constexpr size_t kAlignment = 64;
  const size_t capacity = kKeepsBuffers || gpu_ ? (bytes + kAlignment) / kAlignment * kAlignment : bytes;
  {
    // The smallest idle buffer that is large enough, but not one many times too large: that would be missing
    // later.
    std::lock_guard lock(mutex_);
    size_t best = idle_.size();
    for (size_t i = 0; i < idle_.size(); ++i) {
      const size_t size = idle_[i].first;
      if (size >= capacity && size / 4 <= capacity && (best == idle_.size() || size < idle_[best].first))
        best = i;
    }
    if (best < idle_.size()) {
      Scratch scratch(this, idle_[best].second, idle_[best].first);
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(best));
      return scratch;
    }
  }
  if (lender_) {
    std::optional<Scratch> lent = lender_->take_if_there(bytes);
    if (!lent) return std::nullopt;
    return Scratch(this, std::exchange(lent->data_, nullptr), lent->capacity_);
  }
  void* data = gpu_ ? gpu_->try_allocate(capacity, GpuUse::kWork) : allocate_memory(capacity);
  if (!data && gpu_) {
    release();  // buffers of other sizes
    data = gpu_->try_allocate(capacity, GpuUse::kWork);
  }
  if (!data) return std::nullopt;
  return Scratch(this, data, capacity);
}

Scratch Workspace::take(size_t bytes) {
  if (std::optional<Scratch> scratch = take_if_there(bytes)) return std::move(*scratch);
  if (gpu_ && !lender_) gpu_->fail_for(bytes);
  fail(ErrorCode::kOutOfMemory, "{} bytes of scratch memory are not to be had", bytes);
}

Tensor allocate(const OpContext& context, DType dtype, Shape shape) {
  if (!context.gpu) return Tensor::allocate(dtype, std::move(shape));
  size_t bytes = dtype_size(dtype);
  for (int64_t extent : shape) bytes *= static_cast<size_t>(extent);
  const auto buffer = std::make_shared<Scratch>(context.workspace->take(bytes));
  return Tensor::lent_by(buffer, buffer->as<void>(), *context.gpu, dtype, std::move(shape));
}

Tensor zeros(const OpContext& context, DType dtype, Shape shape) {
  Tensor tensor = allocate(context, dtype, std::move(shape));
  if (context.gpu) {
    context.gpu->clear(tensor.mutable_bytes(), tensor.byte_count());
  } else {
    std::memset(tensor.mutable_bytes(), 0, tensor.byte_count());
  }
  return tensor;
}

namespace {

Tensor placed_as(const OpContext& context, const void* values, DType dtype, size_t count) {
  const Shape shape = {static_cast<int64_t>(count)};
  if (!context.gpu) return Tensor::borrow(nullptr, values, dtype, shape);
  Tensor there = allocate(context, dtype, shape);
  context.gpu->copy_in(there.mutable_bytes(), values, there.byte_count());
  return there;
}

}  // namespace

Tensor placed(const OpContext& context, std::span<const int32_t> values) {
  return placed_as(context, values.data(), DType::kI32, values.size());
}

Tensor placed(const OpContext& context, std::span<const float> values) {
  return placed_as(context, values.data(), DType::kF32, values.size());
}

void copy(const OpContext& context, void* to, const void* from, size_t bytes) {
  if (context.gpu) {
    context.gpu->copy_within(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

void copy_here(const OpContext& context, void* to, const void* from, size_t bytes) {
  if (context.gpu) {
    context.gpu->copy_out(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace lowbit
