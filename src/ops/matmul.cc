#include "ops/matmul.h"

#include "format/bits.h"
#include "format/codebook.h"
#include "ops/cpu/matmul_kernels.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/matmul_prepare.h"
#include "ops/parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>

namespace lowbit {
namespace {

using MatmulKernel = Kernel<MatmulArgs>;

constexpr size_t kTogether = 4;  // outputs of one loop at most

bool has_whole_units(const MatmulArgs& args) {
  return args.group_size >= args.in || args.group_size % unit_columns(args.bits) == 0;
}
// AMX tiles are made of codebooks of 4 bits only.
bool fits_tiles(const MatmulArgs& args) {
  return has_whole_units(args) && (args.kind == WeightKind::kAffine || args.bits == 4);
}
// Values of 13 bits: none that is not 0 may be much smaller than the largest.
bool fits_short_values(const MatmulArgs& args) {
  if (args.bits < 4 || args.fp8_mantissa > 0 || !has_whole_units(args)) return false;
  float least = std::numeric_limits<float>::infinity(), largest = 0;
  for (int i = 0; i < 1 << args.bits; ++i) {
    const float size = std::abs(args.codebook[i]);
    largest = std::max(largest, size);
    if (size > 0) least = std::min(least, size);
  }
  return largest <= 256 * least;
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
constexpr MatmulKernel kCodebookDecode[] = {
    {"avx512int16", Isa::kAvx512Vnni, fits_short_values, matmul_decode_codebook_int16_avx512vnni},
    {"avx512", Isa::kAvx512, has_whole_units, matmul_decode_codebook_avx512},
    {"avx2int16", Isa::kAvx2, fits_short_values, matmul_decode_codebook_int16_avx2},
    {"avx2", Isa::kAvx2, has_whole_units, matmul_decode_codebook_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};
constexpr MatmulKernel kInt8Decode[] = {
    {"avx512vnni", Isa::kAvx512Vnni, nullptr, matmul_int8_avx512vnni},
    {"avx512", Isa::kAvx512, nullptr, matmul_int8_avx512},
    {"avx2", Isa::kAvx2, nullptr, matmul_int8_avx2},
    {"ref", Isa::kRef, nullptr, matmul_int8_ref},
};
constexpr MatmulKernel kInt8Prefill[] = {
    {"amx", Isa::kAmxInt8, nullptr, matmul_int8_amx},
    {"avx512vnni", Isa::kAvx512Vnni, nullptr, matmul_int8_avx512vnni},
    {"avx512", Isa::kAvx512, nullptr, matmul_int8_avx512},
    {"avx2", Isa::kAvx2, nullptr, matmul_int8_avx2},
    {"ref", Isa::kRef, nullptr, matmul_int8_ref},
};
constexpr MatmulKernel kDensePrefill[] = {
    {"amx", Isa::kAmxBf16, is_bf16, matmul_prefill_amx},
    {"avx512", Isa::kAvx512, nullptr, matmul_prefill_avx512},
    {"avx2", Isa::kAvx2, nullptr, matmul_prefill_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};
// Of codes, affine or with a codebook.
constexpr MatmulKernel kCodesPrefill[] = {
    {"amx", Isa::kAmxBf16, fits_tiles, matmul_prefill_amx},
    {"avx512", Isa::kAvx512, has_whole_units, matmul_prefill_avx512},
    {"avx2", Isa::kAvx2, has_whole_units, matmul_prefill_avx2},
    {"ref", Isa::kRef, nullptr, matmul_ref},
};

struct Table {
  std::string_view op;
  std::span<const MatmulKernel> kernels;
};

Table table_of(WeightKind kind, MatmulMode mode) {
  const bool is_decode = mode == MatmulMode::kDecode;
  switch (kind) {
    case WeightKind::kAffine:
      return is_decode ? Table{"matmul_affine_decode", kAffineDecode}
                       : Table{"matmul_affine_prefill", kCodesPrefill};
    case WeightKind::kCodebook:
      return is_decode ? Table{"matmul_codebook_decode", kCodebookDecode}
                       : Table{"matmul_codebook_prefill", kCodesPrefill};
    case WeightKind::kInt8:
      return is_decode ? Table{"matmul_int8_decode", kInt8Decode}
                       : Table{"matmul_int8_prefill", kInt8Prefill};
    default:
      return is_decode ? Table{"matmul_dense_decode", kDenseDecode}
                       : Table{"matmul_dense_prefill", kDensePrefill};
  }
}

XForm form_of(const MatmulKernel& kernel, WeightKind kind, MatmulMode mode) {
  if (kind == WeightKind::kInt8) return XForm::kInt8;
  if (kernel.isa == Isa::kRef) return XForm::kPlain;
  if (mode == MatmulMode::kPrefill) return kernel.isa == Isa::kAmxBf16 ? XForm::kBf16Tiles : XForm::kPlain;
  if (kind == WeightKind::kAffine || kernel.fits == fits_short_values) return XForm::kInt16;
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

void set_int8_inputs(const QuantizedTensor& weight, MatmulArgs& args) {
  const bool is_static = weight.activations == ActivationFormat::kInt8Static;
  const int64_t most_columns = is_static ? kMostStaticColumns : kMostInt8Columns;
  if (weight.format != Format::kInt8 || !(weight.outlier_threshold >= 0) ||
      weight.in_features > most_columns) {
    fail(
        ErrorCode::kInvalidArgument,
        "matmul: inputs in int8 go with int8 weights of at most {} columns and a threshold of 0 or more, not "
        "with {}, {} columns and {}",
        most_columns, format_name(weight.format), weight.in_features, weight.outlier_threshold);
  }
  args.kind = WeightKind::kInt8;
  args.outlier_threshold = weight.outlier_threshold;
  if (!is_static) return;
  const auto [scale, zero_point] = weight.input_grid;
  if (!(scale > 0) || !std::isfinite(scale) || zero_point < -128 || zero_point > 127 ||
      weight.outlier_threshold > 0) {
    fail(ErrorCode::kInvalidArgument,
         "matmul: static inputs have scale {}, zero_point {} and threshold {}, expected a positive scale, "
         "-128 to 127 and 0",
         scale, zero_point, weight.outlier_threshold);
  }
  args.input_scale = scale;
  args.input_zero_point = zero_point;
  if (zero_point == 0) return;
  expect_shape(weight.input_offsets, DType::kI32, {weight.out_features}, "input_offsets");
  args.input_offsets = weight.input_offsets.data<int32_t>();
}

void set_weight(const QuantizedTensor& weight, MatmulArgs& args) {
  const bool is_affine = weight.format == Format::kAffine, is_int8 = weight.format == Format::kInt8;
  const bool has_bits = is_affine ? is_supported_bits(weight.bits)
                                  : weight.bits == bits_of(weight.format).value_or(weight.bits) &&
                                        weight.bits >= 3 && weight.bits <= 8;
  const bool is_one_group =
      !is_int8 || (weight.group_size >= weight.in_features && weight.zero_points.empty());
  if (!has_bits || !is_one_group || weight.group_size <= 0 || weight.in_features < 0 ||
      weight.out_features < 0) {
    fail(ErrorCode::kInvalidArgument,
         "matmul: no {} weight can have {} bits, group size {} and shape [{}, {}]",
         format_name(weight.format), weight.bits, weight.group_size, weight.out_features, weight.in_features);
  }
  args.kind = WeightKind::kAffine;
  if (has_codebook(weight.format)) {
    args.kind = WeightKind::kCodebook;
    if (weight.format == Format::kLog2)
      expect_shape(weight.codebook, DType::kF32, {codebook_entries(weight.bits)}, "codebook");
    args.codebook = codebook_of(weight).data();
    if (weight.format == Format::kFp8) args.fp8_mantissa = 3;
    if (weight.format == Format::kFp8E5m2) args.fp8_mantissa = 2;
  }
  if (weight.activations != ActivationFormat::kNone) set_int8_inputs(weight, args);
  args.has_wide_scales = scale_dtype(weight.format) == DType::kF32;
  args.bits = weight.bits;
  args.out = weight.out_features;
  args.in = weight.in_features;
  args.group_size = std::min(weight.group_size, std::max<int64_t>(1, args.in));
  expect_shape(weight.codes, DType::kI32, {packed_words(args.in, args.bits), args.out}, "codes");
  expect_shape(weight.scales, scale_dtype(weight.format), {weight.groups(), args.out}, "scales");
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
  job.args.y = floats(output.y);
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
  if (output.bias && !output.bias->empty()) {
    expect_shape(*output.bias, DType::kF32, {job.args.out}, "bias");
    job.args.bias = output.bias->data<float>();
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
    case XForm::kInt8:
      return a.args.outlier_threshold == b.args.outlier_threshold &&
             a.args.input_scale == b.args.input_scale && a.args.input_zero_point == b.args.input_zero_point;
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
  to.x_bytes = from.x_bytes;
  to.x_outliers = from.x_outliers;
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

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
int64_t round_up(int64_t value, int64_t multiple) { return parts_of(value, multiple) * multiple; }

constexpr int64_t kColumnUnit = 32;

// Where the next output begins when all are counted one behind the other, each from a multiple of 32 on.
int64_t padded_columns(const Job& job) { return round_up(job.args.out, kColumnUnit); }

// Columns, counted over all outputs, that a thread takes at a time. One range for each thread, of 64 to 2048,
// or else ranges of about 1024: long runs of each word row are read, few pages touched.
int64_t decode_columns_at_a_time(int64_t columns, int threads) {
  const int64_t parts = columns <= 2048 * threads ? threads : round_up(columns / 1024, threads);
  return std::max<int64_t>(64, round_up(parts_of(columns, parts), kColumnUnit));
}

// Ranges of at most 1024 with which the last thread ends first. Each range reads all of x, which takes as
// long as some three units of columns (AMX, 512 rows).
int64_t prefill_columns_at_a_time(int64_t columns, int threads) {
  constexpr int64_t kMostUnits = 32, kUnitsOfX = 3;
  const int64_t units = parts_of(columns, kColumnUnit);
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t size = 1; size <= std::min(units, kMostUnits); ++size) {
    const int64_t cost = parts_of(parts_of(units, size), threads) * (size + kUnitsOfX);
    if (cost > least) continue;
    best = size;
    least = cost;
  }
  return best * kColumnUnit;
}

// By the thread that has just made y: it still has it in its cache.
void add_columns(const Job& job, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < job.args.rows; ++row) {
    const float* y = job.args.y + row * job.args.out;
    float* sum = job.add_to + row * job.args.out;
    for (int64_t n = begin; n < end; ++n) sum[n] += y[n];
  }
}

// visit(job, begin, end) for the columns of outputs that the range holds.
template <class Visit>
void for_each_part(std::span<const Job> jobs, int64_t first, int64_t last, const Visit& visit) {
  for (const Job& job : jobs) {
    const int64_t begin = std::max<int64_t>(0, first), end = std::min(job.args.out, last);
    if (begin < end) visit(job, begin, end);
    first -= padded_columns(job);
    last -= padded_columns(job);
  }
}

// Asks for the rows that a decode kernel reads first: as much of them as a first-level cache takes well.
void ask_for_first_rows(const Job& job, int64_t begin, int64_t end) {
  if (!job.args.codes) return;
  constexpr int64_t kWordsAtFirst = 4096, kLineWords = 16;
  const int64_t rows =
      std::min((job.args.in * job.args.bits + 31) / 32, std::max<int64_t>(1, kWordsAtFirst / (end - begin)));
  for (int64_t row = 0; row < rows; ++row) {
    const char* words = static_cast<const char*>(job.args.codes) + row * job.args.out * 4;
    for (int64_t n = begin; n < end; n += kLineWords) __builtin_prefetch(words + n * 4);
  }
}

// Jobs that share one prepared x, in one loop over the columns of all. The threads are called before x is
// ready when bringing it there is the work of one: they wait for it at the first rows of their weights.
template <class FillX>
void run_jobs(const OpContext& context, std::span<const Job> jobs, MatmulMode mode, const FillX& fill) {
  const int threads = context.threads->size();
  const size_t stride = kMatmulScratchBytes + (static_cast<size_t>(jobs[0].args.in) * 4 + 63) / 64 * 64;
  const Scratch scratch = context.workspace->take(stride * static_cast<size_t>(threads));
  const bool is_small = is_prepared_by_one(jobs[0].args);
  struct alignas(64) Flag {
    std::atomic<bool> is_set;
  } ready{!is_small};
  if (!is_small) fill();
  // By value: each reference would be another line for a thread to wait for.
  const auto run_columns = [jobs, stride, is_small, &ready, base = scratch.as<char>()](
                               int64_t first, int64_t last, int worker) {
    if (is_small && worker > 0 && !ready.is_set.load(std::memory_order_acquire)) {
      for_each_part(jobs, first, last, ask_for_first_rows);
      while (!ready.is_set.load(std::memory_order_acquire)) pause_briefly();
    }
    for_each_part(jobs, first, last, [&](const Job& job, int64_t begin, int64_t end) {
      job.kernel->run(job.args, begin, end, base + stride * static_cast<size_t>(worker));
      if (job.add_to) add_columns(job, begin, end);
    });
  };
  int64_t columns = 0;
  for (const Job& job : jobs) columns += padded_columns(job);
  const int64_t weights = jobs[0].args.gated ? 2 : 1;  // a gated column is one of each
  const int64_t chunk =
      mode == MatmulMode::kDecode
          ? decode_columns_at_a_time(columns, threads)
          : round_up(prefill_columns_at_a_time(columns * weights, threads) / weights, kColumnUnit);
  context.threads->parallel_for(columns, chunk, run_columns, [&] {
    if (!is_small) return;
    for_each_part(jobs, 0, chunk, ask_for_first_rows);
    fill();
    ready.is_set.store(true, std::memory_order_release);
  });
}

// Prepares the x that all of `jobs` share, and runs the first `count` of them.
void prepare_and_run(const OpContext& context, std::span<Job> jobs, size_t count, MatmulMode mode) {
  Job& leader = jobs[0];
  std::optional<Scratch> gathered;
  if (leader.order) gathered.emplace(gather_columns(context, leader.order, leader.args));
  const float* const plain = leader.args.x;
  const Scratch prepared = place_x(context, leader.form, leader.args);
  for (Job& job : jobs.subspan(1)) copy_x(leader.args, job.args);
  run_jobs(context, jobs.first(count), mode,
           [&] { fill_x(context, leader.form, leader.args, plain, prepare_bf16_tiles); });
}

}  // namespace

void matmul(const OpContext& given, ConstActivations x, int64_t tokens, std::span<const MatmulOutput> outputs,
            MatmulMode mode) {
  if (tokens <= 0 || outputs.empty()) return;
  if constexpr (kHasCuda) {
    if (given.gpu) {
      matmul_on_gpu(given, x, tokens, outputs, mode);
      return;
    }
  }
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
    for (size_t i = 0; i < some.size(); ++i) {
      jobs[i] = make_job(context, floats(x), tokens, some[i], mode);
      if (jobs[i].args.in != in) {
        fail(ErrorCode::kInvalidArgument, "matmul: outputs share x, but have {} and {} columns", in,
             jobs[i].args.in);
      }
    }
    for (size_t begin = 0, end = 0; begin < some.size(); begin = end) {
      for (end = begin + 1; end < some.size() && share_x(jobs[begin], jobs[end]);) ++end;
      prepare_and_run(context, std::span(jobs + begin, end - begin), end - begin, mode);
    }
  }
}

bool matmul_gated_together(const OpContext& context, ConstActivations x, int64_t tokens,
                           const MatmulOutput& gate, const MatmulOutput& up, Activations out,
                           MatmulMode mode) {
  if (context.gpu || !context.threads || !context.workspace || mode != MatmulMode::kPrefill) return false;
  MatmulOutput outputs[] = {gate, up};
  Job jobs[2];
  for (size_t i = 0; i < 2; ++i) {
    outputs[i].y = out;
    outputs[i].add_to = nullptr;
    jobs[i] = make_job(context, floats(x), tokens, outputs[i], mode);
  }
  auto& [first, second] = jobs;
  const auto run = first.kernel->run;
  const MatmulArgs &a = first.args, &b = second.args;
  if ((run != matmul_int8_amx && run != matmul_prefill_amx) || second.kernel->run != run ||
      a.kind != b.kind || a.in != b.in || a.out != b.out || a.in == 0 || a.in > kMostGatedColumns ||
      !share_x(first, second))
    return false;
  first.args.gated = &second.args;
  prepare_and_run(context, jobs, 1, mode);
  return true;
}

std::vector<KernelListing> matmul_kernels() {
  std::vector<KernelListing> list;
  for (MatmulMode mode : {MatmulMode::kDecode, MatmulMode::kPrefill}) {
    for (WeightKind kind :
         {WeightKind::kBF16, WeightKind::kAffine, WeightKind::kCodebook, WeightKind::kInt8}) {
      const Table table = table_of(kind, mode);
      append_listing(list, table.op, table.kernels);
    }
  }
  return list;
}

}  // namespace lowbit
