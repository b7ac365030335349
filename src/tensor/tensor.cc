#include "tensor/tensor.h"

#include "base/gpu_queue.h"
#include "base/memory.h"
#include "tensor/half.h"

#include <cstring>

namespace lowbit {
namespace {

int64_t count_elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, extent, &count)) {
      fail(ErrorCode::kInvalidArgument, "a tensor of shape {} cannot exist", shape_text(shape));
    }
  }
  return count;
}

int64_t count_bytes(DType dtype, const Shape& shape) {
  int64_t bytes;
  if (__builtin_mul_overflow(count_elements(shape), static_cast<int64_t>(dtype_size(dtype)), &bytes)) {
    fail(ErrorCode::kOutOfMemory, "a tensor of shape {} does not fit in memory", shape_text(shape));
  }
  return bytes;
}

float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF64:
      return static_cast<float>(static_cast<const double*>(data)[i]);
    case DType::kF32:
      return static_cast<const float*>(data)[i];
    case DType::kF16:
      return f16_to_float(static_cast<const uint16_t*>(data)[i]);
    case DType::kBF16:
      return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      fail(ErrorCode::kInternal, "a tensor of type {} is not floating", dtype_name(dtype));
  }
}

void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(data)[i] = value;
      return;
    case DType::kF32:
      static_cast<float*>(data)[i] = value;
      return;
    case DType::kF16:
      static_cast<uint16_t*>(data)[i] = float_to_f16(value);
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(data)[i] = float_to_bf16(value);
      return;
    default:
      fail(ErrorCode::kInternal, "a tensor of type {} is not floating", dtype_name(dtype));
  }
}

}  // namespace

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return text + "]";
}

int64_t Tensor::element_count() const {
  int64_t count = 1;
  for (int64_t extent : shape_) count *= extent;
  return data_ ? count : 0;
}

Tensor Tensor::allocate(DType dtype, Shape shape) {
  const int64_t bytes = count_bytes(dtype, shape);
  void* memory = allocate_memory(static_cast<size_t>(bytes));
  if (!memory) {
    fail(ErrorCode::kOutOfMemory, "{} bytes for a tensor of shape {} are not to be had", bytes,
         shape_text(shape));
  }
  Tensor tensor;
  tensor.owner_ = std::shared_ptr<const void>(memory, [size = static_cast<size_t>(bytes)](const void* p) {
    free_memory(const_cast<void*>(p), size);
  });
  tensor.data_ = memory;
  tensor.dtype_ = dtype;
  tensor.shape_ = std::move(shape);
  tensor.writable_ = true;
  return tensor;
}

Tensor Tensor::allocate_on(GpuQueue* gpu, DType dtype, Shape shape) {
  if (!gpu) return allocate(dtype, std::move(shape));
  void* const memory = gpu->memory().allocate(static_cast<size_t>(count_bytes(dtype, shape)));
  Tensor tensor;
  tensor.owner_ = std::shared_ptr<const void>(
      memory, [from = gpu->shared_memory()](const void* p) { from->free(const_cast<void*>(p)); });
  tensor.data_ = memory;
  tensor.dtype_ = dtype;
  tensor.shape_ = std::move(shape);
  tensor.writable_ = true;
  tensor.device_ = gpu->gpu();
  return tensor;
}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor tensor = allocate(dtype, std::move(shape));
  std::memset(tensor.mutable_bytes(), 0, tensor.byte_count());
  return tensor;
}

Tensor Tensor::lent_by(std::shared_ptr<const void> owner, void* data, GpuQueue& gpu, DType dtype,
                       Shape shape) {
  Tensor tensor = borrow(std::move(owner), data, dtype, std::move(shape));
  tensor.writable_ = true;
  tensor.device_ = gpu.gpu();
  return tensor;
}

Tensor Tensor::borrow(std::shared_ptr<const void> owner, const void* data, DType dtype, Shape shape) {
  count_elements(shape);
  static const char kNothing = 0;  // an empty tensor of a file still has an address
  Tensor tensor;
  tensor.owner_ = std::move(owner);
  tensor.data_ = data ? data : &kNothing;
  tensor.dtype_ = dtype;
  tensor.shape_ = std::move(shape);
  return tensor;
}

Tensor Tensor::rows(int64_t begin, int64_t count) const {
  LOWBIT_ASSERT(!shape_.empty() && begin >= 0 && count >= 0 && begin + count <= shape_[0]);
  Tensor part = *this;
  const int64_t row_elements = shape_[0] == 0 ? 0 : element_count() / shape_[0];
  part.data_ =
      static_cast<const char*>(data_) + static_cast<size_t>(begin * row_elements) * dtype_size(dtype_);
  part.shape_[0] = count;
  return part;
}

Tensor Tensor::part(size_t first_byte, DType dtype, Shape shape) const {
  LOWBIT_ASSERT(first_byte % dtype_size(dtype) == 0 &&
                first_byte + static_cast<size_t>(count_bytes(dtype, shape)) <= byte_count());
  Tensor part = *this;
  part.data_ = static_cast<const char*>(data_) + first_byte;
  part.dtype_ = dtype;
  part.shape_ = std::move(shape);
  return part;
}

Tensor Tensor::reshaped(Shape shape) const {
  LOWBIT_ASSERT(count_elements(shape) == element_count());
  Tensor other = *this;
  other.shape_ = std::move(shape);
  return other;
}

Tensor converted(const Tensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) return tensor;
  LOWBIT_ASSERT(tensor.device() == kHost);
  Tensor out = Tensor::allocate(dtype, tensor.shape());
  const int64_t count = tensor.element_count();
  for (int64_t i = 0; i < count; ++i)
    store(out.mutable_bytes(), dtype, i, load(tensor.bytes(), tensor.dtype(), i));
  return out;
}

Tensor transposed(const Tensor& matrix) {
  LOWBIT_ASSERT(matrix.shape().size() == 2 && matrix.device() == kHost);
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  Tensor out = Tensor::allocate(matrix.dtype(), {columns, rows});
  auto move = [&]<class Element>(Element) {
    constexpr int64_t kSide = 32;  // of a square that stays in the cache while it is turned
    const Element* from = matrix.data<Element>();
    Element* to = out.mutable_data<Element>();
    for (int64_t top = 0; top < rows; top += kSide) {
      for (int64_t left = 0; left < columns; left += kSide) {
        for (int64_t column = left; column < std::min(columns, left + kSide); ++column) {
          for (int64_t row = top; row < std::min(rows, top + kSide); ++row)
            to[column * rows + row] = from[row * columns + column];
        }
      }
    }
  };
  switch (dtype_size(matrix.dtype())) {
    case 1:
      move(uint8_t{});
      break;
    case 2:
      move(uint16_t{});
      break;
    case 4:
      move(uint32_t{});
      break;
    default:
      move(uint64_t{});
  }
  return out;
}

Tensor copied_to(GpuQueue& gpu, const Tensor& tensor) {
  Tensor there = Tensor::allocate_on(&gpu, tensor.dtype(), tensor.shape());
  gpu.copy_in(there.mutable_bytes(), tensor.bytes(), tensor.byte_count());
  return there;
}

float float_at(const Tensor& tensor, int64_t index) { return load(tensor.bytes(), tensor.dtype(), index); }

}  // namespace lowbit
