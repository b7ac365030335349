#include "runtime/gpu_warm_up.h"

#include "lowbit/error.h"

namespace lowbit {
namespace {

// Of a block's layers, as ops/cuda/matmul_gpu.cc asks for them.
std::vector<GpuLibraries::Kind> kinds_of(const Block& block, int64_t rows) {
  std::vector<GpuLibraries::Kind> kinds;
  for (const Stage& stage : block.stages()) {
    const bool adds = stage.carry_width == 0;
    for (const int index : stage.linears) {
      const Linear& linear = block.linears()[static_cast<size_t>(index)];
      kinds.push_back({rows, in_features(linear.weight), out_features(linear.weight),
                       !adds && !linear.bias.empty(), adds});
    }
  }
  return kinds;
}

}  // namespace

GpuWarmUp::GpuWarmUp(GpuQueue& queue, std::shared_ptr<GpuLibraries> libraries, const Model& model,
                     int64_t rows) {
  // A batch is seldom as full as it could be, and the library chooses by its rows.
  for (const int64_t typical : {rows, rows * 3 / 4, rows / 2}) {
    if (typical == 0 || model.layer_count() == 0) continue;
    const std::vector<GpuLibraries::Kind> kinds = kinds_of(model.block(0), typical);
    kinds_.insert(kinds_.end(), kinds.begin(), kinds.end());
  }
  if constexpr (kHasCuda) {
    done_ = std::async(std::launch::async, [this, &queue, libraries = std::move(libraries)] {
      queue.make_current();
      try {
        const HostWords kept_by_the_queue(queue, 1);
      } catch (const Error&) {  // whoever needs it is told then
      }
      libraries->gemm_problem();
      if (kinds_.empty()) return;
      try {
        libraries->load_code(kinds_, is_enough_);
      } catch (const Error&) {  // as above
      }
    });
  }
}

GpuWarmUp::~GpuWarmUp() { is_enough_ = true; }

}  // namespace lowbit
