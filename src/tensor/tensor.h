// A tensor: dtype and shape over storage that may be heap memory, a mapped file or a GPU's memory. A small
// value; copies share the storage. Elements are contiguous, the last dimension fastest.
#pragma once

#include "base/fail.h"
#include "tensor/dtype.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lowbit {

class GpuQueue;

using Shape = std::vector<int64_t>;

// Where elements lie: -1 is this machine's memory, otherwise the GPU of that index (base/gpu.h).
constexpr int kHost = -1;

std::string shape_text(const Shape& shape);  // "[576, 1536]"

class Tensor {
 public:
  Tensor() = default;  // no storage, empty() is true

  // Heap memory, 64-byte aligned, not initialised. kOutOfMemory names the bytes.
  static Tensor allocate(DType dtype, Shape shape);
  static Tensor zeros(DType dtype, Shape shape);
  // The GPU's memory (null: heap memory, as above); kOutOfMemory as GpuMemory says. Only kernels and copies
  // may touch it.
  static Tensor allocate_on(GpuQueue* gpu, DType dtype, Shape shape);
  // The GPU's memory that `owner` keeps alive.
  static Tensor lent_by(std::shared_ptr<const void> owner, void* data, GpuQueue& gpu, DType dtype,
                        Shape shape);
  // Bytes that `owner` keeps alive and that must not be written, such as a mapped file.
  static Tensor borrow(std::shared_ptr<const void> owner, const void* data, DType dtype, Shape shape);

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t size(int dimension) const { return shape_[static_cast<size_t>(dimension)]; }
  int64_t element_count() const;
  size_t byte_count() const { return static_cast<size_t>(element_count()) * dtype_size(dtype_); }
  bool is_writable() const { return writable_; }
  int device() const { return device_; }

  const void* bytes() const { return data_; }
  void* mutable_bytes() {
    LOWBIT_ASSERT(writable_);
    return const_cast<void*>(data_);
  }
  template <class T>
  const T* data() const {
    LOWBIT_ASSERT(sizeof(T) == dtype_size(dtype_));
    return static_cast<const T*>(data_);
  }
  template <class T>
  T* mutable_data() {
    LOWBIT_ASSERT(sizeof(T) == dtype_size(dtype_));
    return static_cast<T*>(mutable_bytes());
  }

  // Rows [begin, begin + count) of the first dimension; shares the storage.
  Tensor rows(int64_t begin, int64_t count) const;
  // Elements of another kind within the bytes of this one; shares the storage.
  Tensor part(size_t first_byte, DType dtype, Shape shape) const;
  // The same elements under another shape of the same count.
  Tensor reshaped(Shape shape) const;

 private:
  std::shared_ptr<const void> owner_;
  const void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  bool writable_ = false;
  int device_ = kHost;
  Shape shape_;
};

// A copy in another floating type (round to nearest even), or the tensor itself when the type is already
// that.
Tensor converted(const Tensor& tensor, DType dtype);
// A copy of a matrix [rows, columns] as [columns, rows].
Tensor transposed(const Tensor& matrix);
// A copy in a GPU's memory.
Tensor copied_to(GpuQueue& gpu, const Tensor& tensor);
// Element i of a floating tensor as a float. Slow: for tests, checks and statistics.
float float_at(const Tensor& tensor, int64_t index);

}  // namespace lowbit
