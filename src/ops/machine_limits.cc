#include "ops/machine_limits.h"

#include "ops/cpu/limits_kernels.h"
#include "ops/kernel_table.h"
#include "tensor/tensor.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <vector>

namespace lowbit {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

using ReadStreams = uint64_t (*)(const void*, size_t, int) noexcept;
using MultiplyAdd = double (*)(int64_t, float*) noexcept;

ReadStreams best_reader() {
  return isa_available(Isa::kAvx512) ? read_streams_avx512
         : isa_available(Isa::kAvx2) ? read_streams_avx2
                                     : read_streams_ref;
}
MultiplyAdd best_fp32() {
  return isa_available(Isa::kAvx512) ? multiply_add_avx512
         : isa_available(Isa::kAvx2) ? multiply_add_avx2
                                     : multiply_add_ref;
}

// Threads take pieces of this size as they become free, as kernels do.
constexpr size_t kPiece = size_t{1} << 20;

ReadBandwidth read_bandwidth(const ThreadPool& threads, const char* data, size_t bytes, double seconds) {
  const ReadStreams read = best_reader();
  std::vector<uint64_t> sums(static_cast<size_t>(threads.size()));
  const int64_t pieces = static_cast<int64_t>(bytes / kPiece);
  constexpr std::array kStreams = {1, 4, 8, 16};
  std::array<std::vector<double>, kStreams.size()> passes;  // GB/s
  const double start = now();
  do {
    for (size_t i = 0; i < kStreams.size(); ++i) {
      const double begin = now();
      threads.parallel_for(pieces, 1, [&](int64_t first, int64_t last, int worker) {
        for (int64_t piece = first; piece < last; ++piece) {
          sums[static_cast<size_t>(worker)] +=
              read(data + static_cast<size_t>(piece) * kPiece, kPiece, kStreams[i]);
        }
      });
      passes[i].push_back(static_cast<double>(pieces) * kPiece / (now() - begin) * 1e-9);
    }
  } while (now() - start < seconds);
  // The buffer holds ones only, so each word read adds to a sum that cannot be zero.
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  if (total == 0) fail(ErrorCode::kInternal, "machine limits: the reads were lost");
  ReadBandwidth bandwidth;
  for (size_t i = 0; i < kStreams.size(); ++i) {
    std::ranges::sort(passes[i]);
    bandwidth.best_gb_per_s = std::max(bandwidth.best_gb_per_s, passes[i].back());
    const double median = passes[i][passes[i].size() / 2];
    if (median > bandwidth.gb_per_s) bandwidth.gb_per_s = median, bandwidth.streams = kStreams[i];
  }
  return bandwidth;
}

Tensor ones(size_t bytes) {
  Tensor buffer = Tensor::allocate(DType::kU8, {static_cast<int64_t>(std::max(bytes, kPiece))});
  std::memset(buffer.mutable_bytes(), 1, buffer.byte_count());  // also makes the pages exist
  return buffer;
}

double operations_per_second(const ThreadPool& threads, MultiplyAdd multiply) {
  constexpr int kRepeats = 5;
  constexpr double kSeconds = 0.008;
  float sink;
  int64_t rounds = 1024;
  for (;;) {  // how many rounds fill the time
    const double begin = now();
    multiply(rounds, &sink);
    const double taken = now() - begin;
    if (taken > kSeconds / 4) {
      rounds = static_cast<int64_t>(static_cast<double>(rounds) * kSeconds / taken) + 1;
      break;
    }
    rounds *= 2;
  }
  const int pieces = 4 * threads.size();  // threads that start late take fewer
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<double> operations(static_cast<size_t>(pieces));
    const double begin = now();
    threads.parallel_for(pieces, 1, [&](int64_t first, int64_t last, int) {
      float result;
      for (int64_t i = first; i < last; ++i) {
        operations[static_cast<size_t>(i)] = static_cast<double>(rounds / 4) * multiply(rounds / 4, &result);
      }
    });
    const double taken = now() - begin;
    double total = 0;
    for (double some : operations) total += some;
    best = std::max(best, total / taken);
  }
  return best;
}

Arithmetic arithmetic(const ThreadPool& one, const ThreadPool& all, MultiplyAdd multiply) {
  return {operations_per_second(one, multiply) * 1e-9, operations_per_second(all, multiply) * 1e-9};
}

}  // namespace

ReadBandwidth measure_read_bandwidth(const ThreadPool& threads, size_t buffer_bytes, double seconds) {
  const Tensor buffer = ones(buffer_bytes);
  return read_bandwidth(threads, static_cast<const char*>(buffer.bytes()), buffer.byte_count(), seconds);
}

MachineLimits measure_machine_limits(const ThreadPool& threads, size_t buffer_bytes) {
  const ThreadPool one(1);
  MachineLimits limits;
  {
    const Tensor buffer = ones(buffer_bytes);
    const char* data = static_cast<const char*>(buffer.bytes());
    limits.buffer_bytes = buffer.byte_count();
    limits.read_one = read_bandwidth(one, data, limits.buffer_bytes, 0.2);
    limits.read_all = read_bandwidth(threads, data, limits.buffer_bytes, 0.2);
  }
  limits.fp32 = arithmetic(one, threads, best_fp32());
  if (isa_available(Isa::kAmxBf16)) limits.amx_bf16 = arithmetic(one, threads, multiply_tiles_bf16_amx);
  if (isa_available(Isa::kAmxInt8)) limits.amx_int8 = arithmetic(one, threads, multiply_tiles_int8_amx);
  return limits;
}

}  // namespace lowbit
