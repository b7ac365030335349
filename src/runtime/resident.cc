#include "runtime/resident.h"

#include "base/cpu.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

namespace lowbit {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kPiece = size_t{1} << 20;  // bytes that a thread copies at a time

template <class Visit>
void for_each_tensor(NamedWeights& weights, Visit visit) {
  for (auto& [name, weight] : weights) {
    if (Tensor* dense = std::get_if<Tensor>(&weight)) {
      visit(*dense);
    } else {
      QuantizedTensor& quantized = std::get<QuantizedTensor>(weight);
      for (Tensor* part :
           {&quantized.codes, &quantized.scales, &quantized.zero_points, &quantized.column_order})
        visit(*part);
    }
  }
}

}  // namespace

bool move_to_memory(NamedWeights& weights, const ThreadPool& threads, const TensorFolder& files) {
  // Tensors that share their bytes go on sharing them.
  std::map<std::pair<const void*, size_t>, size_t> places;
  size_t total = 0;
  for_each_tensor(weights, [&](Tensor& tensor) {
    if (tensor.empty() || !places.emplace(std::pair(tensor.bytes(), tensor.byte_count()), total).second)
      return;
    total += (tensor.byte_count() + kLine - 1) / kLine * kLine;
  });
  if (total > machine_memory().available_bytes / 4) return false;
  if (total == 0) return true;
  Tensor all = Tensor::allocate(DType::kU8, {static_cast<int64_t>(total)});
  char* const memory = static_cast<char*>(all.mutable_bytes());
  struct Piece {
    const char* from;
    char* to;
    size_t bytes;
  };
  std::vector<Piece> pieces;
  for (const auto& [source, place] : places) {
    const auto [from, bytes] = source;
    for (size_t at = 0; at < bytes; at += kPiece)
      pieces.push_back(
          {static_cast<const char*>(from) + at, memory + place + at, std::min(kPiece, bytes - at)});
  }
  threads.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      std::memcpy(piece.to, piece.from, piece.bytes);
      files.release(piece.from, piece.bytes);
    }
  });
  const auto owner = std::make_shared<Tensor>(std::move(all));
  for_each_tensor(weights, [&](Tensor& tensor) {
    if (tensor.empty()) return;
    const char* place = memory + places.at({tensor.bytes(), tensor.byte_count()});
    tensor = Tensor::borrow(owner, place, tensor.dtype(), tensor.shape());
  });
  return true;
}

}  // namespace lowbit
