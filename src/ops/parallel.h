// How an op hands its kernel the work: ranges of units to threads, a private piece of scratch for each.
#pragma once

#include "ops/kernel_table.h"

#include <algorithm>
#include <span>
#include <vector>

namespace lowbit {

// Runs body(begin, end, worker) over [0, count) on the context's threads, or here when it has none.
template <class Body>
void split_work(const OpContext& context, int64_t count, int64_t chunk, const Body& body) {
  if (count <= 0) return;
  if (context.threads) {
    context.threads->parallel_for(count, chunk, body);
  } else {
    body(int64_t{0}, count, 0);
  }
}

inline int worker_count(const OpContext& context) { return context.threads ? context.threads->size() : 1; }

// Scratch from the context's workspace; a context without one gets a workspace for the length of the op.
class OpScratch {
 public:
  OpScratch(const OpContext& context, size_t bytes)
      : scratch_((context.workspace ? *context.workspace : own_).take(bytes)) {}
  template <class T>
  T* as() const {
    return scratch_.as<T>();
  }

 private:
  Workspace own_;  // before scratch_, which goes back to it
  Scratch scratch_;
};

template <class Args>
void run_kernel(const OpContext& context, const Kernel<Args>& kernel, const Args& args, int64_t count,
                int64_t chunk) {
  split_work(context, count, chunk,
             [&](int64_t begin, int64_t end, int) { kernel.run(args, begin, end, nullptr); });
}

// With so many bytes of scratch for each worker.
template <class Args>
void run_kernel(const OpContext& context, const Kernel<Args>& kernel, const Args& args, int64_t count,
                int64_t chunk, size_t scratch_bytes) {
  if (count <= 0) return;
  const size_t stride = (scratch_bytes + 63) / 64 * 64;
  const OpScratch scratch(context, stride * static_cast<size_t>(worker_count(context)));
  split_work(context, count, chunk, [&](int64_t begin, int64_t end, int worker) {
    kernel.run(args, begin, end, scratch.as<char>() + stride * static_cast<size_t>(worker));
  });
}

// Units per chunk so that a chunk has about `cost` elementary steps: small ops then stay on the calling
// thread.
inline int64_t chunk_for(int64_t steps_per_unit, int64_t cost) {
  return std::max<int64_t>(1, cost / std::max<int64_t>(1, steps_per_unit));
}

// The rows of `lowbit doctor` for one table.
template <class Args>
void append_listing(std::vector<KernelListing>& out, std::string_view op,
                    std::span<const Kernel<Args>> table) {
  for (const Kernel<Args>& kernel : table) {
    out.push_back(
        {std::string(op), std::string(kernel.name), isa_available(kernel.isa), isa_requirement(kernel.isa)});
  }
}

}  // namespace lowbit
