// The operators of GPTQ on a GPU at the shapes of Qwen2-1.5B, beside the rates that large products reach in
// the same minute. Medians of five passes.
//
//   gpu_quantize_bench
#include "base/gpu.h"
#include "ops/clip_search.h"
#include "ops/columns.h"
#include "ops/cuda/libraries.h"
#include "ops/fit_scales.h"
#include "ops/gemm.h"
#include "ops/gptq_block.h"
#include "ops/gram.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

namespace lowbit {
namespace {

struct Machine {
  GpuQueue queue{0};
  GpuLibraries libraries{queue};
  Workspace workspace{queue};
  OpContext context{nullptr, &workspace, nullptr, &queue, &libraries};

  template <class Body>
  double milliseconds(Body body, int times = 1) {
    body();
    queue.wait("a bench");
    std::vector<double> passes;
    for (int pass = 0; pass < 5; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < times; ++i) body();
      queue.wait("a bench");
      passes.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(passes.begin(), passes.begin() + 2, passes.end());
    return passes[2] / times;
  }
  Tensor filled(DType dtype, Shape shape, float scale) {
    Tensor here = Tensor::allocate(DType::kF32, std::move(shape));
    for (int64_t i = 0; i < here.element_count(); ++i)
      here.mutable_data<float>()[i] = scale * (static_cast<float>(i * 7919 % 20011) / 10006 - 1);
    return copied_to(queue, converted(here, dtype));
  }
};

void print(const char* name, double ms, double flops = 0, double limit = 0) {
  std::printf("%-44s %9.3f ms", name, ms);
  if (flops > 0) std::printf(" %8.1f TFLOP/s", flops / ms * 1e-9);
  if (limit > 0) std::printf(" %4.0f %%", 100 * flops / ms * 1e-9 / limit);
  std::printf("\n");
}

void run_width(Machine& machine, int64_t width, int64_t rows, double bf16_limit, double f32_limit) {
  const OpContext& ops = machine.context;
  std::printf("\n%lld inputs, %lld outputs\n", static_cast<long long>(width), static_cast<long long>(rows));
  const double n = static_cast<double>(width), r = static_cast<double>(rows);
  const int64_t tokens = 16384;
  const Tensor x = machine.filled(DType::kBF16, {tokens, width}, 1);
  Tensor h = zeros(ops, DType::kF32, {width, width}), u = zeros(ops, DType::kF32, {width, width});
  print("X^T X, 16384 tokens", machine.milliseconds([&] {
    gram_accumulate(ops, {x.bytes(), DType::kBF16}, tokens, width, h.mutable_data<float>());
  }),
        n * n * static_cast<double>(tokens), bf16_limit);
  print("mirror", machine.milliseconds([&] { mirror_upper(ops, h.mutable_data<float>(), width); }));
  std::vector<int32_t> order;
  std::vector<float> diagonal = diagonal_of(ops, h.data<float>(), width);
  for (int64_t i = 0; i < width; ++i) {
    order.push_back(static_cast<int32_t>(width - 1 - i));
    diagonal[static_cast<size_t>(i)] *= 1.5f;
  }
  const Tensor order_there = placed(ops, order), diagonal_there = placed(ops, diagonal);
  Tensor permuted = zeros(ops, DType::kF32, {width, width});
  print("permutation", machine.milliseconds([&] {
    permute_gram(ops, {.h = h.data<float>(),
                       .order = order_there.data<int32_t>(),
                       .diagonal = diagonal_there.data<float>(),
                       .width = width,
                       .rows = width,
                       .to = permuted.mutable_data<float>()});
  }));
  bool is_definite = true;
  print("inverse Cholesky factor", machine.milliseconds([&] {
    is_definite = inverse_cholesky(ops, permuted.data<float>(), width, FactorPrecision::kFloat,
                                   u.mutable_data<float>());
  }),
        2 * n * n * n / 3, f32_limit);
  if (!is_definite) std::printf("  (not positive definite)\n");

  const int64_t block = 128;
  const Tensor weight = machine.filled(DType::kBF16, {rows, width}, 0.05f);
  Tensor w = zeros(ops, DType::kF32, {width, rows}), values = zeros(ops, DType::kF32, {block, rows}),
         errors = zeros(ops, DType::kF32, {block, rows}), codes = zeros(ops, DType::kU8, {width, rows}),
         scales = zeros(ops, DType::kF32, {rows}), zero_points = zeros(ops, DType::kF32, {rows});
  const std::vector<int32_t> groups(static_cast<size_t>(block), 0);
  const Tensor groups_there = placed(ops, groups);
  print("loading columns", machine.milliseconds([&] {
    (void)load_columns(ops, weight, 0, rows, order_there.data<int32_t>(), width, w.mutable_data<float>());
  }));
  print("clip search of 128 columns",
        machine.milliseconds(
            [&] {
              clip_search(ops,
                          {w.data<float>(), rows, block, rows, scales.mutable_data<float>(),
                           zero_points.mutable_data<float>()},
                          {}, {}, diagonal_there.data<float>());
            },
            20));
  GptqBlockArgs args{w.mutable_data<float>(),
                     rows,
                     codes.mutable_data<uint8_t>(),
                     rows,
                     errors.mutable_data<float>(),
                     rows,
                     u.data<float>(),
                     width,
                     scales.data<float>(),
                     zero_points.data<float>(),
                     rows,
                     groups_there.data<int32_t>(),
                     block,
                     0,
                     block,
                     15,
                     nullptr,
                     0};
  print("loop over 128 columns", machine.milliseconds([&] { gptq_block(ops, args, rows); }, 20));
  args.previous = values.data<float>();
  args.previous_stride = rows;
  args.u = permuted.data<float>();
  print("descent over 128 columns", machine.milliseconds([&] { gptq_block(ops, args, rows); }, 20));
  print("scales of 128 columns",
        machine.milliseconds(
            [&] {
              fit_scales(ops, {permuted.data<float>(), width, block, rows, 0, block, codes.data<uint8_t>(),
                               zero_points.data<float>(), scales.mutable_data<float>(),
                               errors.mutable_data<float>(), values.mutable_data<float>()});
            },
            20));
  auto product = [&](int64_t depth) {
    return machine.milliseconds(
        [&] {
          gemm_subtract(ops, {permuted.data<float>(), depth == block ? errors.data<float>() : w.data<float>(),
                              w.mutable_data<float>(), width, rows, rows, width, rows, depth});
        },
        5);
  };
  print("update by 128 columns", product(block), 2 * n * r * static_cast<double>(block), f32_limit);
  Tensor other = zeros(ops, DType::kF32, {width, rows});
  print("H W", machine.milliseconds([&] {
    gemm_subtract(ops, {permuted.data<float>(), w.data<float>(), other.mutable_data<float>(), width, rows,
                        rows, width, rows, width});
  }),
        2 * n * n * r, f32_limit);
  print("packing", machine.milliseconds([&] {
    pack_columns(ops, {codes.data<uint8_t>(), order_there.data<int32_t>(), width, rows, 4,
                       u.mutable_data<uint32_t>(), rows});
  }));
}

int run() {
  if (!gpu_support().problem.empty()) {
    std::fprintf(stderr, "gpu_quantize_bench: %s\n", gpu_support().problem.c_str());
    return 1;
  }
  Machine machine;
  auto limit = [&](DType dtype) {
    const int64_t size = 8192;
    const Tensor a = machine.filled(dtype, {size, size}, 1);
    Tensor c = zeros(machine.context, DType::kF32, {size, size});
    const double ms = machine.milliseconds([&] {
      machine.libraries.add_product({.dtype = dtype,
                                     .a = a.bytes(),
                                     .b = a.bytes(),
                                     .c = c.mutable_data<float>(),
                                     .a_stride = size,
                                     .b_stride = size,
                                     .c_stride = size,
                                     .rows = size,
                                     .columns = size,
                                     .depth = size});
    });
    return 2.0 * size * size * size / ms * 1e-9;
  };
  const double bf16 = limit(DType::kBF16), f32 = limit(DType::kF32);
  std::printf("%s: products of 8192 x 8192 in BF16 %.0f TFLOP/s, in F32 %.1f TFLOP/s\n",
              gpu_support().gpus[0].name.c_str(), bf16, f32);
  run_width(machine, 1536, 1536, bf16, f32);
  run_width(machine, 1536, 8960, bf16, f32);
  run_width(machine, 8960, 1536, bf16, f32);
  return 0;
}

}  // namespace
}  // namespace lowbit

int main() { return lowbit::run(); }
