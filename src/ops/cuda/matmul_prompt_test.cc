#include "ops/cuda/matmul_prompt.h"

#include "format/codebook.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/fragments_gpu.h"
#include "ops/cuda/gpu_test_support.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/cuda/weights_gpu.h"
#include "ops/matmul.h"

#include <cmath>

namespace lowbit {
namespace {

using testing::Numbers;

struct Kind {
  int bits;
  int64_t group_size;  // 0: the whole row
  bool has_zeros = false, has_order = false;
  Format format = Format::kAffine;
};
const Kind kKinds[] = {{4, 128, true},
                       {4, 32, true, true},
                       {3, 0},
                       {2, 128, false, true},
                       {8, 128, true},
                       {8, 32, true, true},
                       {8, 0},
                       {4, 64, false, false, Format::kNf4},
                       {4, 256, false, true, Format::kFp4},
                       {8, 0, false, false, Format::kFp8},
                       {8, 64, false, true, Format::kFp8E5m2}};
struct Size {
  int64_t rows, in;
  std::vector<int64_t> outs;
};
const Size kSizes[] = {{33, 64, {16}},          {64, 576, {576, 192, 192}}, {100, 1536, {1536, 256, 256}},
                       {200, 200, {8, 200}},    {300, 1000, {4000, 392}},   {700, 1536, {8960}},
                       {1500, 256, {200, 136}}, {2048, 576, {1536}},        {90, 8960, {1536}}};

class GpuMatmulPrompt : public testing::GpuTest {
 protected:
  static QuantizedTensor make_weight(int64_t out, int64_t in, const Kind& kind, Numbers& numbers) {
    const int64_t group_size = kind.group_size == 0 || kind.group_size > in ? in : kind.group_size;
    QuantizedTensor weight =
        testing::make_quantized(out, in, kind.bits, group_size, kind.has_zeros, kind.has_order, numbers);
    weight.format = kind.format;
    if (!has_codebook(kind.format)) return weight;
    weight.scales = converted(weight.scales, DType::kF32);
    if (kind.bits == 8) {  // no codes of infinity or NaN
      auto* const words = weight.codes.mutable_data<uint32_t>();
      for (int64_t i = 0; i < weight.codes.element_count(); ++i) words[i] &= 0xbfbfbfbfu;
    }
    return weight;
  }

  // The BF16 that the library multiplies, in F32, and plus the bias.
  std::vector<float> expected(const Tensor& x, int64_t rows, const Weight& weight, const Tensor& bias) {
    const auto& q = std::get<QuantizedTensor>(weight);
    const int64_t out = q.out_features, in = q.in_features;
    Tensor dense = room(DType::kBF16, out * in), y = room(DType::kF32, rows * out);
    std::vector<float> codebook;  // its values as BF16
    if (has_codebook(q.format))
      for (const float value : codebook_of(q)) codebook.push_back(bf16_to_float(float_to_bf16(value)));
    gpu_unpack_fragments({.out = out,
                          .in = in,
                          .group_size = q.group_size,
                          .bits = q.bits,
                          .codebook = codebook,
                          .scale_factor = kept_scale_factor(q.format),
                          .fragments = q.codes.bytes(),
                          .scales = q.scales.bytes(),
                          .zero_points = q.zero_points.empty() ? nullptr : q.zero_points.bytes(),
                          .column_order = q.column_order.empty() ? nullptr : q.column_order.data<int32_t>(),
                          .to = dense.mutable_data<uint16_t>()},
                         queue_->stream());
    libraries_->multiply({.rows = rows,
                          .in = in,
                          .out = out,
                          .x = x.data<uint16_t>(),
                          .w = dense.data<uint16_t>(),
                          .y = of(y)});
    std::vector<float> values = back(y);
    const std::vector<float> more = back(bias);
    for (size_t i = 0; i < values.size(); ++i) values[i] += more[i % static_cast<size_t>(out)];
    return values;
  }
};

// The products are those of the same BF16 numbers, whose sums have another order.
TEST_F(GpuMatmulPrompt, IsTheLibrarysProductOfTheWeightsAsBf16) {
  if (!has_prompt_product()) GTEST_SKIP() << "compute capability 9.0 alone has these kernels";
  if (!libraries_->gemm_problem().empty()) GTEST_SKIP() << libraries_->gemm_problem();
  Numbers numbers(3);
  for (const Kind& kind : kKinds) {
    for (const Size& size : kSizes) {
      const auto [rows, in, outs] = size;
      const std::string what = fmt::format("{} {} bits, groups of {}, {} x {}", format_name(kind.format),
                                           kind.bits, kind.group_size, rows, in);
      std::vector<float> x = numbers.normals(rows * in);
      const Tensor x_there = rounded(x);
      std::vector<Weight> weights;
      std::vector<Tensor> biases, added, y;
      std::vector<std::vector<float>> right, before;
      // An order of columns is shared by what one call multiplies.
      const bool is_one_by_one = kind.has_order;
      for (int64_t out : outs) {
        weights.push_back(to_gpu(gpu_, make_weight(out, in, kind, numbers)));
        biases.push_back(there(numbers.normals(out)));
        before.push_back(numbers.normals(rows * out));
        added.push_back(there(before.back()));
        y.push_back(room(DType::kBF16, rows * out));
      }
      for (size_t i = 0; i < outs.size(); ++i)
        right.push_back(expected(x_there, rows, weights[i], biases[i]));
      auto product = [&](bool adds, size_t first, size_t count) {
        const QuantizedTensor& q = std::get<QuantizedTensor>(weights[first]);
        const GpuWeightKind of_weight = kind_of(weights[first]);
        GpuDecodeArgs args{.rows = rows,
                           .in = in,
                           .bits = q.bits,
                           .group_size = q.group_size,
                           .has_table = has_codebook(q.format),
                           .table = of_weight.table,
                           .x = x_there.data<uint16_t>(),
                           .column_order = of_weight.column_order,
                           .matrices = static_cast<int>(count)};
        for (size_t i = 0; i < count; ++i) {
          MatmulOutput output{.weight = &weights[first + i], .bias = &biases[first + i]};
          if (adds)
            output.add_to = added[first + i].mutable_data<float>();
          else
            output.y = of(y[first + i]);
          args.matrix[i] = matrix_of(output);
        }
        ASSERT_TRUE(fits_prompt_product(args)) << what;
        const Tensor blocks = room(DType::kU8, prompt_block_bytes(rows, in));
        gpu_prompt_product(args, const_cast<void*>(blocks.bytes()), queue_->stream());
        queue_->wait("prompt product");
      };
      for (const bool adds : {false, true}) {
        if (!is_one_by_one) product(adds, 0, outs.size());
        for (size_t i = 0; is_one_by_one && i < outs.size(); ++i) product(adds, i, 1);
      }
      for (size_t i = 0; i < outs.size(); ++i) {
        const std::vector<float> halves = back(y[i]), sums = back(added[i]);
        float most = 0;
        for (const float value : right[i]) most = std::max(most, std::abs(value));
        ASSERT_GT(most, 0);
        // Of a table's values times scales one in hundreds is rounded the other way.
        const float tolerance = (kind.format == Format::kAffine ? 1e-5f : 2e-3f) * most;
        size_t wrong = 0;
        for (size_t j = 0; j < halves.size(); ++j) {
          const float value = right[i][j];
          if (!(std::abs(halves[j] - value) <= std::abs(value) / 256 + tolerance)) ++wrong;
          if (!(std::abs(sums[j] - before[i][j] - value) <= tolerance + 1e-6f * std::abs(before[i][j])))
            ++wrong;
        }
        ASSERT_EQ(wrong, 0u) << what << ", output " << i << " of " << halves.size();
      }
    }
  }
}

}  // namespace
}  // namespace lowbit
