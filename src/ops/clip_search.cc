#include "ops/clip_search.h"

#include "format/affine.h"
#include "ops/clip_search_args.h"
#include "ops/columns.h"
#include "ops/cuda/quantize_gpu.h"
#include "ops/parallel.h"

namespace lowbit {
namespace {

constexpr Kernel<ClipSearchArgs> kTable[] = {
    {"avx512", Isa::kAvx512, nullptr, clip_search_avx512},
    {"avx2", Isa::kAvx2, nullptr, clip_search_avx2},
    {"ref", Isa::kRef, nullptr, clip_search_ref},
};

void run(const OpContext& context, const ClipSearchArgs& args, int64_t rows) {
  if constexpr (kHasCuda) {
    refuse_levels_on_gpu(context, args.levels);
    if (context.gpu) return gpu_clip_search(args, rows, context.gpu->stream());
  }
  const auto& kernel = choose_kernel<ClipSearchArgs>(context, "clip_search", kTable, args);
  const int64_t chunk = chunk_for(args.columns * args.candidates, 1 << 14);
  run_kernel(context, kernel, args, rows, (chunk + kClipSearchRows - 1) / kClipSearchRows * kClipSearchRows,
             static_cast<size_t>(clip_search_scratch_bytes(args.columns)));
  if (!args.levels)
    raise_zero_points({args.scales, args.zero_points, rows}, args.max_code, args.least_zero_point);
}

ClipSearchArgs prepare(const GridProblem& problem, const AffineOptions& options) {
  if (!problem.levels) validate(options);
  return {problem.w,
          problem.stride,
          nullptr,
          problem.columns,
          2.0f,
          1,
          0,
          (1 << options.bits) - 1,
          options.sym,
          problem.scales,
          problem.zero_points,
          problem.least_zero_point,
          problem.levels};
}

}  // namespace

void raise_zero_points(const GridRows& grids, int max_code, int least_zero_point) {
  const float least = static_cast<float>(least_zero_point);
  for (int64_t row = 0; row < grids.rows; ++row) {
    if (grids.zero_points[row] >= least) continue;
    const float top = grids.scales[row] * static_cast<float>(max_code);
    grids.zero_points[row] = least;
    grids.scales[row] = round_scale(top / static_cast<float>(max_code - least_zero_point));
  }
}

void range_grid(const OpContext& context, const GridProblem& problem, const AffineOptions& options) {
  run(context, prepare(problem, options), problem.rows);
}

void clip_search(const OpContext& context, const GridProblem& problem, const AffineOptions& options,
                 const ClipSearchOptions& search, const float* column_weights) {
  if (search.grid < 1 || search.grid > 10000 || !(search.max_shrink >= 0 && search.max_shrink <= 1) ||
      !(search.norm >= 1 && search.norm <= 4)) {
    fail(ErrorCode::kInvalidArgument,
         "clip search: grid {}, max_shrink {}, norm {}; expected 1 to 10000, 0 to 1 and 1 to 4", search.grid,
         search.max_shrink, search.norm);
  }
  ClipSearchArgs args = prepare(problem, options);
  args.norm = search.norm;
  args.step = 1.0 / search.grid;
  args.candidates =
      std::max(1, static_cast<int>(static_cast<double>(search.grid) * double{search.max_shrink} + 1e-4));
  args.column_weights = column_weights;
  if (context.gpu) return run(context, args, problem.rows);
  const OpScratch ones(context, static_cast<size_t>(problem.columns) * sizeof(float) + 64);
  if (!column_weights) {
    std::fill(ones.as<float>(), ones.as<float>() + problem.columns, 1.0f);
    args.column_weights = ones.as<float>();
  }
  run(context, args, problem.rows);
}

std::vector<KernelListing> clip_search_kernels() {
  std::vector<KernelListing> list;
  append_listing<ClipSearchArgs>(list, "clip_search", kTable);
  return list;
}

}  // namespace lowbit
