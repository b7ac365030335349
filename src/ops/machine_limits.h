// What this machine can do at most, measured: the figures that benches and `lowbit doctor` put beside their
// own.
#pragma once

#include "base/threads.h"

#include <cstddef>

namespace lowbit {

struct ReadBandwidth {
  double gb_per_s = 0;       // 1e9 bytes per second: the median pass, which is what can be kept up
  double best_gb_per_s = 0;  // the fastest of all passes
  int streams = 0;           // sequential streams per thread that gave the highest median
};

// Of passes over `buffer_bytes` of memory in turn with 1, 4, 8 and 16 streams per thread.
ReadBandwidth measure_read_bandwidth(const ThreadPool& threads, size_t buffer_bytes, double seconds = 0.3);

// Products and sums counted as two operations, in 1e9 per second, registers or tiles only; 0 where the
// processor has no such unit. With one thread and with all of the pool.
struct Arithmetic {
  double one = 0, all = 0;
};

struct MachineLimits {
  size_t buffer_bytes = 0;
  ReadBandwidth read_one, read_all;
  Arithmetic fp32;      // the widest FMA unit
  Arithmetic amx_bf16;  // BF16 tiles
  Arithmetic amx_int8;  // INT8 tiles
};

// Takes about one second. Buffers that fit a cache measure that cache.
MachineLimits measure_machine_limits(const ThreadPool& threads, size_t buffer_bytes = size_t{256} << 20);

}  // namespace lowbit
