#include "ops/matmul.h"

#include "format/bits.h"
#include "ops/cpu/matmul_kernels.h"
#include "ops/matmul_prepare.h"
#include "ops/parallel.h"
#include "tensor/half.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <optional>

namespace lowbit {
namespace {

using MatmulKernel = Kernel<MatmulArgs>;

constexpr size_t kTogether = 8;  // outputs of one loop at most

bool has_whole_units(const MatmulArgs& args) {
  return args.group_size >= args.in || args.group_size % unit_columns(args.bits) == 0;
}
bool is_bf16(const MatmulArgs& args) { return args.kind == WeightKind::kBF16; }

constexpr MatmulKernel kDenseDecode[] = {
    {"avx512", Isa::kAvx512, nullptr, matmul_decode_dense_avx512},
    {"avx2", Isa::kAvx2, nullptr, matmul_decode_dense_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};
constexpr MatmulKernel kAffineDecode[] = {
    {"avx512vnni", Isa::kAvx512Vnni, has_whole_units, matmul_decode_affine_avx512vnni},
    {"avx512", Isa::kAvx512, has_whole_units, matmul_decode_affine_avx512},
    {"avx2", Isa::kAvx2, has_whole_units, matmul_decode_affine_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};
constexpr MatmulKernel kDensePrefill[] = {
    {"amx", Isa::kAmxBf16, is_bf16, matmul_prefill_amx},
    {"avx512", Isa::kAvx512, nullptr, matmul_prefill_avx512},
    {"avx2", Isa::kAvx2, nullptr, matmul_prefill_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};
constexpr MatmulKernel kAffinePrefill[] = {
    {"amx", Isa::kAmxBf16, has_whole_units, matmul_prefill_amx},
    {"avx512", Isa::kAvx512, has_whole_units, matmul_prefill_avx512},
    {"avx2", Isa::kAvx2, has_whole_units, matmul_prefill_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};

struct Table {
  std::string_view op;
  std::span<const MatmulKernel> kernels;
};

Table table_of(WeightKind kind, MatmulMode mode) {
  const bool is_affine = kind == WeightKind::kAffine;
  if (mode == MatmulMode::kDecode) {
    return is_affine ? Table{"matmul_affine_decode", kAffineDecode}
                     : Table{"matmul_dense_decode", kDenseDecode};
  }
  return is_affine ? Table{"matmul_affine_prefill", kAffinePrefill}
                   : Table{"matmul_dense_prefill", kDensePrefill};
}

XForm form_of(const MatmulKernel& kernel, WeightKind kind, MatmulMode mode) {
  if (kernel.isa == Isa::kRef) return XForm::kPlain;
  if (mode == MatmulMode::kPrefill) return kernel.isa == Isa::kAmxBf16 ? XForm::kBf16Tiles : XForm::kPlain;
  if (kind == WeightKind::kAffine) return XForm::kInt16;
  return kind == WeightKind::kBF16 ? XForm::kEvenOdd : XForm::kPadded;
}

// One output of a call.
struct Job {
  MatmulArgs args;
  const MatmulKernel* kernel = nullptr;
  XForm form = XForm::kPlain;
  const int32_t* order = nullptr;  // columns of x by position, or null
  float* add_to = nullptr;
};

void expect_shape(const Tensor& tensor, DType dtype, std::initializer_list<int64_t> shape, const char* name) {
  if (tensor.dtype() != dtype || !std::ranges::equal(tensor.shape(), shape)) {
    fail(ErrorCode::kInvalidArgument, "matmul: {} is {} {}, expected {} {}", name, dtype_name(tensor.dtype()),
         shape_text(tensor.shape()), dtype_name(dtype), shape_text(shape));
  }
}

void set_weight(const Tensor& weight, MatmulArgs& args) {
  if (weight.shape().size() != 2) {
    fail(ErrorCode::kInvalidArgument, "matmul: a weight of shape {} is no matrix",
         shape_text(weight.shape()));
  }
  switch (weight.dtype()) {
    case DType::kBF16:
      args.kind = WeightKind::kBF16;
      break;
    case DType::kF16:
      args.kind = WeightKind::kF16;
      break;
    case DType::kF32:
      args.kind = WeightKind::kF32;
      break;
    default:
      fail(ErrorCode::kUnsupported, "matmul: a weight of type {} cannot be used, only BF16, F16 and F32",
           dtype_name(weight.dtype()));
  }
  args.weight = weight.bytes();
  args.out = weight.size(0);
  args.in = weight.size(1);
}

void set_weight(const QuantizedTensor& weight, MatmulArgs& args) {
  if (weight.format != Format::kAffine || !is_supported_bits(weight.bits) || weight.group_size <= 0 ||
      weight.in_features < 0 || weight.out_features < 0) {
    fail(ErrorCode::kInvalidArgument, "matmul: no weight can have {} bits, group size {} and shape [{}, {}]",
         weight.bits, weight.group_size, weight.out_features, weight.in_features);
  }
  args.kind = WeightKind::kAffine;
  args.bits = weight.bits;
  args.out = weight.out_features;
  args.in = weight.in_features;
  args.group_size = std::min(weight.group_size, std::max<int64_t>(1, args.in));
  expect_shape(weight.codes, DType::kI32, {packed_words(args.in, args.bits), args.out}, "codes");
  expect_shape(weight.scales, DType::kF16, {weight.groups(), args.out}, "scales");
  args.codes = weight.codes.bytes();
  args.scales = weight.scales.bytes();
  if (!weight.zero_points.empty()) {
    expect_shape(weight.zero_points, DType::kU8, {weight.groups(), args.out}, "zero_points");
    args.zero_points = weight.zero_points.bytes();
  }
}

Job make_job(const OpContext& context, const float* x, int64_t tokens, const MatmulOutput& output,
             MatmulMode mode) {
  Job job;
  job.args.rows = tokens;
  job.args.x = x;
  job.args.y = output.y;
  job.add_to = output.add_to;
  if (const auto* quantized = std::get_if<QuantizedTensor>(output.weight)) {
    set_weight(*quantized, job.args);
    if (!quantized->column_order.empty()) {
      expect_shape(quantized->column_order, DType::kI32, {job.args.in}, "column_order");
      job.order = static_cast<const int32_t*>(quantized->column_order.bytes());
    }
  } else {
    set_weight(std::get<Tensor>(*output.weight), job.args);
  }
  const Table table = table_of(job.args.kind, mode);
  job.kernel = &choose_kernel(context, table.op, table.kernels, job.args);
  job.form = form_of(*job.kernel, job.args.kind, mode);
  return job;
}

// Whether both can use the same prepared x.
bool share_x(const Job& a, const Job& b) {
  if (a.form != b.form || (a.order == nullptr) != (b.order == nullptr)) return false;
  if (a.order && a.order != b.order && std::memcmp(a.order, b.order, static_cast<size_t>(a.args.in) * 4) != 0)
    return false;
  switch (a.form) {
    case XForm::kInt16:
      return a.args.bits == b.args.bits && a.args.group_size == b.args.group_size;
    case XForm::kBf16Tiles:
      return a.args.bits == b.args.bits;
    default:
      return true;
  }
}

void copy_x(const MatmulArgs& from, MatmulArgs& to) {
  to.x = from.x;
  to.x_stride = from.x_stride;
  to.x_codes = from.x_codes;
  to.x_scales = from.x_scales;
  to.x_sums = from.x_sums;
  to.x_blocks = from.x_blocks;
  to.x_tiles = from.x_tiles;
  to.x_depth = from.x_depth;
}

Scratch gather_columns(const OpContext& context, const int32_t* order, MatmulArgs& args) {
  Scratch scratch = context.workspace->take(static_cast<size_t>(args.rows * args.in) * sizeof(float));
  float* gathered = scratch.as<float>();
  for (int64_t i = 0; i < args.in; ++i) {
    int32_t column;
    std::memcpy(&column, order + i, sizeof column);  // a mapped file may not be aligned
    if (column < 0 || column >= args.in) {
      fail(ErrorCode::kInvalidArgument, "matmul: column_order[{}] is {}, expected less than {}", i, column,
           args.in);
    }
    for (int64_t row = 0; row < args.rows; ++row)
      gathered[row * args.in + i] = args.x[row * args.in + column];
  }
  args.x = gathered;
  return scratch;
}

bool has_bias(const MatmulOutput& output) { return output.bias && !output.bias->empty(); }

// Biases become F32 here, so that kernels know one type.
void copy_bias(const Tensor& bias, int64_t out, float* to) {
  if (bias.shape() != Shape{out}) {
    fail(ErrorCode::kInvalidArgument, "matmul: the bias has shape {}, expected [{}]",
         shape_text(bias.shape()), out);
  }
  const char* from = static_cast<const char*>(bias.bytes());
  switch (bias.dtype()) {
    case DType::kF32:
      std::memcpy(to, from, static_cast<size_t>(out) * 4);
      return;
    case DType::kBF16:
    case DType::kF16:
      for (int64_t i = 0; i < out; ++i) {
        uint16_t bits;
        std::memcpy(&bits, from + 2 * i, sizeof bits);
        to[i] = bias.dtype() == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
      }
      return;
    default:
      fail(ErrorCode::kUnsupported, "matmul: a bias of type {} cannot be used, only BF16, F16 and F32",
           dtype_name(bias.dtype()));
  }
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The size of so many like parts, a multiple of 32 and never 0.
int64_t even_columns(int64_t columns, int64_t parts) {
  return round_up((std::max<int64_t>(1, columns) - 1) / parts + 1, 32);
}

// Where the next output begins when all are counted one behind the other, each from a multiple of 32 on.
int64_t padded_columns(const Job& job) { return round_up(job.args.out, 32); }

// Columns, counted over all outputs, that a thread takes at a time. Decode: one range for each thread, of 64
// to 2048, or else ranges of about 1024: long runs of each word row are read, few pages touched. Prefill: as
// few ranges as threads, of at most 512, since each reads all of x.
int64_t columns_at_a_time(int64_t columns, MatmulMode mode, int threads) {
  if (mode == MatmulMode::kPrefill)
    return even_columns(columns, round_up(std::max<int64_t>(1, columns / 512), threads));
  const int64_t parts = columns <= 2048 * threads ? threads : round_up(columns / 1024, threads);
  return std::max<int64_t>(64, even_columns(columns, parts));
}

// By the thread that has just made y: it still has it in its cache.
void add_columns(const Job& job, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < job.args.rows; ++row) {
    const float* y = job.args.y + row * job.args.out;
    float* sum = job.add_to + row * job.args.out;
    for (int64_t n = begin; n < end; ++n) sum[n] += y[n];
  }
}

// Jobs that share one prepared x, in one loop over the columns of all.
void run_jobs(const OpContext& context, std::span<const Job> jobs, MatmulMode mode) {
  const int threads = context.threads->size();
  const size_t stride = kMatmulScratchBytes + (static_cast<size_t>(jobs[0].args.in) * 4 + 63) / 64 * 64;
  const Scratch scratch = context.workspace->take(stride * static_cast<size_t>(threads));
  // By value: each reference would be another line for a thread to wait for.
  const auto run_columns = [jobs, stride, base = scratch.as<char>()](int64_t first, int64_t last,
                                                                     int worker) {
    for (const Job& job : jobs) {
      const int64_t begin = std::max<int64_t>(0, first), end = std::min(job.args.out, last);
      if (begin < end) {
        job.kernel->run(job.args, begin, end, base + stride * static_cast<size_t>(worker));
        if (job.add_to) add_columns(job, begin, end);
      }
      first -= padded_columns(job);
      last -= padded_columns(job);
    }
  };
  int64_t columns = 0;
  for (const Job& job : jobs) columns += padded_columns(job);
  context.threads->parallel_for(columns, columns_at_a_time(columns, mode, threads), std::ref(run_columns));
}

}  // namespace

void matmul(const OpContext& given, const float* x, int64_t tokens, std::span<const MatmulOutput> outputs,
            MatmulMode mode) {
  if (tokens <= 0 || outputs.empty()) return;
  std::optional<ThreadPool> own_threads;
  std::optional<Workspace> own_workspace;
  OpContext context = given;
  if (!context.threads) context.threads = &own_threads.emplace(1);
  if (!context.workspace) context.workspace = &own_workspace.emplace();
  const int64_t in = in_features(*outputs[0].weight);
  for (size_t first = 0; first < outputs.size(); first += kTogether) {
    const std::span<const MatmulOutput> some =
        outputs.subspan(first, std::min(kTogether, outputs.size() - first));
    Job jobs[kTogether];
    int64_t biased = 0;  // columns
    for (size_t i = 0; i < some.size(); ++i) {
      jobs[i] = make_job(context, x, tokens, some[i], mode);
      if (jobs[i].args.in != in) {
        fail(ErrorCode::kInvalidArgument, "matmul: outputs share x, but have {} and {} columns", in,
             jobs[i].args.in);
      }
      if (has_bias(some[i])) biased += jobs[i].args.out;
    }
    std::optional<Scratch> biases;
    if (biased > 0) biases.emplace(context.workspace->take(static_cast<size_t>(biased) * sizeof(float)));
    float* bias = biases ? biases->as<float>() : nullptr;
    for (size_t i = 0; i < some.size(); ++i) {
      if (!has_bias(some[i])) continue;
      copy_bias(*some[i].bias, jobs[i].args.out, bias);
      jobs[i].args.bias = bias;
      bias += jobs[i].args.out;
    }
    for (size_t begin = 0, end = 0; begin < some.size(); begin = end) {
      Job& leader = jobs[begin];
      std::optional<Scratch> gathered;
      if (leader.order) gathered.emplace(gather_columns(context, leader.order, leader.args));
      const Scratch prepared = prepare_x(context, leader.form, leader.args, prepare_bf16_tiles);
      for (end = begin + 1; end < some.size() && share_x(leader, jobs[end]); ++end)
        copy_x(leader.args, jobs[end].args);
      run_jobs(context, std::span(jobs + begin, end - begin), mode);
    }
  }
}

std::vector<KernelListing> matmul_kernels() {
  std::vector<KernelListing> list;
  for (MatmulMode mode : {MatmulMode::kDecode, MatmulMode::kPrefill}) {
    for (WeightKind kind : {WeightKind::kBF16, WeightKind::kAffine}) {
      const Table table = table_of(kind, mode);
      append_listing(list, table.op, table.kernels);
    }
  }
  return list;
}

}  // namespace lowbit
