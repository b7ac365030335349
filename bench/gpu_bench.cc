// GPU kernels beside the GPU's limits:
//
//   gpu_bench [products|prompts|layers|attention|sampling]   decode products at large shapes and at those of
//                                                            Qwen2-1.5B; its prompts' products; its layers
//                                                            one after the other; attention of prompts;
//                                                            sampling at its vocabulary
//
// Matrices rotate over at least four times the second-level cache; launches are captured in a graph, as
// decoding does it; medians of nine passes.
#include "base/gpu.h"
#include "format/codebook.h"
#include "ops/cuda/attention_gpu.h"
#include "ops/cuda/elementwise_gpu.h"
#include "ops/cuda/fragments.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/limits.h"
#include "ops/cuda/matmul_decode.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/matmul.h"
#include "ops/sampling.h"
#include "tensor/tensor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>
#include <random>
#include <string_view>
#include <vector>

namespace lowbit {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_bench: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

void* allocate(int64_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<size_t>(bytes)));
  check(cudaMemset(data, 1, static_cast<size_t>(bytes)));
  return data;
}

struct Shape {
  const char* name;
  int64_t out, in;
};

// How weights are kept.
struct Coding {
  const char* name;
  int bits;
  int64_t group_size = 128;
  Format format = Format::kAffine;
};
constexpr Coding kCodings[] = {
    {"bf16", 16}, {"int8", 8}, {"fp8", 8, 64, Format::kFp8}, {"int4", 4}, {"nf4", 4, 64, Format::kNf4}};

int64_t scale_bytes(const Shape& shape, const Coding& coding) {
  return coding.bits == 16 ? 0 : (shape.in + coding.group_size - 1) / coding.group_size * shape.out * 2;
}
int64_t weight_bytes(const Shape& shape, const Coding& coding) {
  return coding.bits == 16 ? shape.out * shape.in * 2 : fragment_bytes(shape.out, shape.in, coding.bits);
}
// Without what is multiplied.
GpuDecodeArgs args_for(const Coding& coding, int64_t rows, int64_t in) {
  return {.rows = rows,
          .in = in,
          .bits = coding.bits,
          .group_size = coding.group_size,
          .has_table = has_codebook(coding.format),
          .table = code_table(coding.format),
          .matrices = 1};
}

// Microseconds per launch.
double time_decode(const Shape& shape, const Coding& coding, int64_t rows, uint64_t l2_bytes) {
  constexpr int64_t kLaunches = 200;
  const int64_t bytes = weight_bytes(shape, coding);
  const int64_t copies = std::max<int64_t>(1, (4 * static_cast<int64_t>(l2_bytes) + bytes - 1) / bytes);
  char* const weights = static_cast<char*>(allocate(copies * bytes));
  GpuDecodeArgs args = args_for(coding, rows, shape.in);
  args.matrix[0].out = shape.out;
  args.matrix[0].scales = allocate(scale_bytes(shape, coding));
  args.x = static_cast<const uint16_t*>(allocate(rows * shape.in * 2));
  args.matrix[0].y = {allocate(rows * shape.out * 2), DType::kBF16};

  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int64_t i = 0; i < kLaunches; ++i) {
    args.matrix[0].weight = weights + i % copies * bytes;
    gpu_matmul_decode(args, stream);
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  const double ms = gpu_median_ms([&] { check(cudaGraphLaunch(executable, stream)); }, stream);
  check(cudaStreamSynchronize(stream));
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  for (const void* data :
       {static_cast<const void*>(weights), args.matrix[0].scales, static_cast<const void*>(args.x),
        static_cast<const void*>(args.matrix[0].y.data)}) {
    check(cudaFree(const_cast<void*>(data)));
  }
  return ms * 1e3 / kLaunches;
}

void print_products(const Gpu& gpu, const GpuLimits& limits) {
  std::printf("\n%-22s %5s %4s %10s %10s %10s %10s\n", "decode product", "kind", "rows", "MB", "us", "GB/s",
              "of copy");
  const Shape shapes[] = {{"16384 x 8192", 16384, 8192},    {"qkv 2048 x 1536", 2048, 1536},
                          {"o 1536 x 1536", 1536, 1536},    {"gate_up 17920 x 1536", 17920, 1536},
                          {"down 1536 x 8960", 1536, 8960}, {"head 151936 x 1536", 151936, 1536}};
  for (const Shape& shape : shapes) {
    for (const Coding& coding : kCodings) {
      for (int64_t rows : {1, 8, 32}) {
        const double us = time_decode(shape, coding, rows, gpu.l2_bytes);
        const auto bytes = static_cast<double>(weight_bytes(shape, coding) + scale_bytes(shape, coding));
        const double rate = bytes / us * 1e-3;
        std::printf("%-22s %5s %4lld %10.2f %10.2f %10.0f %9.0f%%\n", shape.name, coding.name,
                    static_cast<long long>(rows), bytes / 1e6, us, rate, 100 * rate / limits.copy_gb_per_s);
      }
    }
  }
}

// Microseconds from logits to the next step's ids, of normal numbers that deviate by 3.
double time_sampling(GpuQueue& queue, const SamplingRule& rule, int64_t rows) {
  constexpr int64_t kVocab = 151936, kLaunches = 100;
  Workspace workspace(queue);
  const OpContext context{.workspace = &workspace, .gpu = &queue};
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<size_t>(rows * kVocab));
  for (float& logit : logits) logit = normal(engine);
  std::vector<uint64_t> random(static_cast<size_t>(rows));
  std::vector<SamplingRow> sampled;
  for (uint64_t& state : random) sampled.push_back({{}, &(state = sampled.size())});
  const Scratch logits_there = workspace.take(logits.size() * sizeof logits[0]);
  queue.copy_in(logits_there.as<void>(), logits.data(), logits.size() * sizeof logits[0]);
  GpuSampling sampling(context, rule, logits_there.as<float>(), kVocab, static_cast<int64_t>(sampled.size()));
  sampling.begin(context, sampled);
  std::vector<AttentionSequence> sequences(static_cast<size_t>(rows));
  const Tensor sequences_there =
      copied_to(queue, Tensor::borrow(nullptr, sequences.data(), DType::kU8,
                                      {static_cast<int64_t>(sequences.size() * sizeof sequences[0])}));
  const std::vector<int64_t> zeros(static_cast<size_t>(rows) * 3);
  const Scratch counts = workspace.take(zeros.size() * sizeof zeros[0]);
  queue.copy_in(counts.as<void>(), zeros.data(), zeros.size() * sizeof zeros[0]);
  GpuAdvanceArgs next;
  next.steps = counts.as<int64_t>();
  next.history = counts.as<uint64_t>() + rows;
  next.ids = counts.as<int32_t>() + 4 * rows;
  next.positions = next.ids + rows;
  next.sequences = static_cast<AttentionSequence*>(const_cast<void*>(sequences_there.bytes()));
  GpuGraph graph(queue, [&] {
    for (int64_t i = 0; i < kLaunches; ++i) gpu_sample(sampling.args(), next, queue.stream());
  });
  const double ms = gpu_median_ms([&] { graph.launch(); }, queue.stream());
  queue.wait("sampling");
  return ms * 1e3 / kLaunches;
}

void print_sampling() {
  GpuQueue queue(0);
  std::printf("\n%-40s %10s %10s %10s\n", "sampling, vocabulary 151936: us, rows", "1", "8", "32");
  const std::pair<const char*, SamplingRule> rules[] = {
      {"greedy", {}},
      {"greedy, repetition penalty", {.repetition_penalty = 1.1f}},
      {"temperature 1", {.temperature = 1}},
      {"top-k 50", {.temperature = 1, .top_k = 50}},
      {"top-p 0.9", {.temperature = 1, .top_p = 0.9f}},
      {"top-p 0.9, temperature 1000", {.temperature = 1000, .top_p = 0.9f}},
      {"top-k 50, top-p 0.9, penalty",
       {.temperature = 1, .top_k = 50, .top_p = 0.9f, .repetition_penalty = 1.1f}},
      {"top-k 20000, top-p 0.9", {.temperature = 10, .top_k = 20000, .top_p = 0.9f}}};
  for (const auto& [name, rule] : rules) {
    std::printf("%-40s", name);
    for (int64_t rows : {1, 8, 32}) std::printf(" %10.2f", time_sampling(queue, rule, rows));
    std::printf("\n");
  }
}

// Qwen2-1.5B's layers, one after the other as decoding queues them, for one new token of each of some
// sequences.
struct Layers {
  static constexpr int64_t kHidden = 1536, kHeads = 12, kKvHeads = 2, kHeadDim = 128, kInner = 8960,
                           kCount = 28;
  static constexpr int64_t kContext = 4096;

  const Coding& coding;
  int64_t rows;
  std::vector<GpuDecodeArgs> products;  // qkv, o, gate and up, down of each layer
  GpuNormRowsArgs norm_rows;            // for products that do not norm
  GpuDecodeAttentionArgs attention;
  std::vector<void*> memory;

  void* take(int64_t bytes) {
    memory.push_back(allocate(bytes));
    return memory.back();
  }
  GpuMatrix matrix(int64_t out, int64_t in) {
    const Shape shape{"", out, in};
    GpuMatrix result{.out = out, .weight = take(weight_bytes(shape, coding))};
    result.scales = take(scale_bytes(shape, coding));
    result.y = {take(rows * out * 2), DType::kBF16};
    return result;
  }

  Layers(const Coding& coding_, int64_t rows_, int64_t position) : coding(coding_), rows(rows_) {
    float* const hidden = static_cast<float*>(take(rows * kHidden * 4));
    float* const norm = static_cast<float*>(take(kHidden * 4));
    auto* const inner = static_cast<uint16_t*>(take(rows * kInner * 2));
    const int64_t cache_bytes = kKvHeads * kContext * kHeadDim * 2;
    std::vector<AttentionSequence> sequences(static_cast<size_t>(rows));
    for (AttentionSequence& sequence : sequences) {
      sequence.row = &sequence - sequences.data();
      sequence.count = 1, sequence.position = position, sequence.capacity = kContext;
      sequence.keys = take(cache_bytes * kCount);
      sequence.values = take(cache_bytes * kCount);
    }
    const size_t bytes = sequences.size() * sizeof sequences[0];
    void* const there = take(static_cast<int64_t>(bytes));
    check(cudaMemcpy(there, sequences.data(), bytes, cudaMemcpyHostToDevice));
    attention = {.sequences = static_cast<const AttentionSequence*>(there),
                 .count = rows,
                 .most_chunks = position / kGpuDecodeKeys + 1,
                 .heads = kHeads,
                 .kv_heads = kKvHeads,
                 .head_dim = kHeadDim,
                 .half = kHeadDim / 2,
                 .scale = 0.088f};
    attention.cosines = static_cast<const float*>(take(kContext * kHeadDim / 2 * 4));
    attention.sines = static_cast<const float*>(take(kContext * kHeadDim / 2 * 4));
    attention.partial = static_cast<float*>(take(decode_partial_floats(attention) * 4));
    attention.arrivals = static_cast<int32_t*>(take(rows * kKvHeads * 4));
    check(cudaMemset(attention.arrivals, 0, static_cast<size_t>(rows * kKvHeads * 4)));
    norm_rows = {.x = hidden, .weight = norm, .rows = rows, .width = kHidden, .epsilon = 1e-6f};
    norm_rows.to = static_cast<uint16_t*>(take(rows * kHidden * 2));
    norm_rows.factors = static_cast<float*>(take(rows * 4));
    const int64_t kept = kept_rows(rows);
    const GpuKeptRows kept_hidden{.x = static_cast<uint16_t*>(take(kept * kHidden * 2)),
                                  .norm_weight = norm,
                                  .squares = static_cast<float*>(take(rows * kHidden / 8 * 4))};
    const GpuKeptRows kept_inner{.x = static_cast<uint16_t*>(take(kept * kInner * 2))};
    const auto keeps = [&](const GpuDecodeArgs& args) {
      return keeps_rows(rows, args.in, tiles_of(args), coding.bits, coding.group_size);
    };
    auto set_x = [&](GpuDecodeArgs& args) {
      if (keeps(args)) {
        args.kept = kept_hidden;
        args.hidden = args.norm_weight = nullptr;
        return;
      }
      if (prepares_in_decode(rows, kHidden, tiles_of(args), coding.bits, coding.group_size)) return;
      args.x = norm_rows.to;
      args.factors = norm_rows.factors;
      args.hidden = args.norm_weight = nullptr;
    };
    for (int64_t layer = 0; layer < kCount; ++layer) {
      GpuDecodeArgs normed = args_for(coding, rows, kHidden);
      normed.hidden = hidden;
      normed.norm_weight = norm;
      normed.epsilon = 1e-6f;
      GpuDecodeArgs qkv = normed, gated = normed;
      qkv.matrices = 3;
      for (int i = 0; i < 3; ++i) qkv.matrix[i] = matrix((i == 0 ? kHeads : kKvHeads) * kHeadDim, kHidden);
      gated.matrices = 2;
      gated.swiglu = true;
      for (int i = 0; i < 2; ++i) gated.matrix[i] = matrix(kInner, kHidden);
      gated.matrix[0].y = {inner, DType::kBF16};
      set_x(qkv);
      set_x(gated);
      GpuDecodeArgs o = args_for(coding, rows, kHidden), down = args_for(coding, rows, kInner);
      o.matrix[0] = matrix(kHidden, kHidden);
      o.matrix[0].add_to = hidden;
      o.x = static_cast<const uint16_t*>(take(rows * kHidden * 2));
      down.matrix[0] = matrix(kHidden, kInner);
      down.matrix[0].add_to = hidden;
      down.x = inner;
      if (keeps(o)) o.matrix[0].next = kept_hidden;
      if (keeps(down) && keeps(gated)) {
        gated.matrix[0].next = down.kept = kept_inner;
        down.matrix[0].next = kept_hidden;
      }
      products.insert(products.end(), {qkv, o, gated, down});
    }
  }
  Layers(const Layers&) = delete;
  Layers& operator=(const Layers&) = delete;
  ~Layers() {
    for (void* data : memory) check(cudaFree(data));
  }

  void queue(void* stream) {
    for (int64_t layer = 0; layer < kCount; ++layer) {
      const GpuDecodeArgs* const product = &products[static_cast<size_t>(4 * layer)];
      if (product[0].factors) gpu_norm_rows(norm_rows, stream);
      gpu_matmul_decode(product[0], stream);
      attention.layer_offset = layer * kKvHeads * kContext * kHeadDim * 2;
      attention.q = static_cast<const uint16_t*>(product[0].matrix[0].y.data);
      attention.k = static_cast<const uint16_t*>(product[0].matrix[1].y.data);
      attention.v = static_cast<const uint16_t*>(product[0].matrix[2].y.data);
      attention.out = const_cast<uint16_t*>(product[1].x);
      gpu_decode_attention(attention, stream);
      gpu_matmul_decode(product[1], stream);
      if (product[2].factors) gpu_norm_rows(norm_rows, stream);
      for (int i = 2; i < 4; ++i) gpu_matmul_decode(product[i], stream);
    }
  }
};

void print_layers() {
  std::printf("\n%-40s", "a layer of Qwen2-1.5B: us");
  for (const Coding& coding : kCodings) std::printf(" %10s", coding.name);
  std::printf("\n");
  constexpr std::pair<int64_t, int64_t> kCases[] = {{1, 100}, {1, 260},  {1, 3900}, {4, 260},
                                                    {8, 260}, {16, 260}, {32, 260}};
  for (const auto& [rows, position] : kCases) {
    std::printf("%2lld sequences at position %-14lld", static_cast<long long>(rows),
                static_cast<long long>(position));
    for (const Coding& coding : kCodings) {
      Layers layers(coding, rows, position);
      GpuQueue queue(0);
      GpuGraph graph(queue, [&] { layers.queue(queue.stream()); });
      const double ms = gpu_median_ms([&] { graph.launch(); }, queue.stream());
      queue.wait("layers");
      std::printf(" %10.2f", ms * 1e3 / Layers::kCount);
    }
    std::printf("\n");
  }
}

using AttentionKernel = void (*)(const GpuAttentionArgs&, void*);
// Microseconds, of prompts of Qwen2-1.5B's heads; 0 where the kernel does not run here.
double time_attention(GpuQueue& queue, int64_t count, int64_t tokens, AttentionKernel kernel) {
  constexpr int64_t kHeads = Layers::kHeads, kKvHeads = Layers::kKvHeads, kHeadDim = Layers::kHeadDim;
  const int64_t cache = kKvHeads * tokens * kHeadDim, width = kHeads * kHeadDim;
  std::vector<void*> memory;
  auto numbers = [&](int64_t size) {
    memory.push_back(allocate(size * 2));
    auto* const data = static_cast<uint16_t*>(memory.back());
    gpu_fill_bf16(data, size, static_cast<uint32_t>(memory.size()), queue.stream());
    return data;
  };
  std::vector<AttentionSequence> sequences;
  for (int64_t i = 0; i < count; ++i)
    sequences.push_back({i * tokens, tokens, 0, tokens, numbers(cache), numbers(cache)});
  const size_t bytes = sequences.size() * sizeof sequences[0];
  void* const there = memory.emplace_back(allocate(static_cast<int64_t>(bytes)));
  check(cudaMemcpy(there, sequences.data(), bytes, cudaMemcpyHostToDevice));
  void* const arrivals = memory.emplace_back(allocate(4));
  check(cudaMemset(arrivals, 0, 4));
  const GpuAttentionArgs args{.sequences = static_cast<const AttentionSequence*>(there),
                              .count = count,
                              .most_tokens = tokens,
                              .heads = kHeads,
                              .kv_heads = kKvHeads,
                              .head_dim = kHeadDim,
                              .scale = 0.088f,
                              .q = numbers(count * tokens * width),
                              .out = numbers(count * tokens * width),
                              .arrivals = static_cast<int32_t*>(arrivals)};
  double ms = 0;
  if (kernel != gpu_prompt_attention || fits_prompt_attention(args)) {
    constexpr int kLaunches = 10;
    ms = gpu_median_ms(
        [&] {
          for (int i = 0; i < kLaunches; ++i) kernel(args, queue.stream());
        },
        queue.stream());
    ms /= kLaunches;
  }
  queue.wait("attention");
  for (void* data : memory) check(cudaFree(data));
  return ms * 1e3;
}

void print_attention() {
  GpuQueue queue(0);
  GpuLibraries libraries(queue);
  const double limit = measure_matrix_rate(queue, libraries);
  std::printf(
      "\nattention of prompts, 12 heads of 128 over 2; TFLOP/s of the keys that are seen; products %.0f\n",
      limit);
  std::printf("%-22s %-10s %10s %10s %10s\n", "sequences x tokens", "kernel", "us", "TFLOP/s", "of products");
  for (auto [count, tokens] : {std::pair<int64_t, int64_t>{8, 2048}, {8, 700}, {1, 8192}}) {
    const auto pairs = static_cast<double>(count * tokens) * static_cast<double>(tokens + 1) / 2;
    const double flop = 4 * pairs * static_cast<double>(Layers::kHeads * Layers::kHeadDim);
    for (int pass = 0; pass < 2; ++pass) {
      for (const auto& [name, kernel] :
           {std::pair<const char*, AttentionKernel>{"wgmma", gpu_prompt_attention},
            {"mma.sync", gpu_any_attention}}) {
        const double us = time_attention(queue, count, tokens, kernel);
        if (us == 0) continue;
        const double rate = flop / us * 1e-6;
        std::printf("%lld x %-18lld %-10s %10.1f %10.0f %9.0f%%\n", static_cast<long long>(count),
                    static_cast<long long>(tokens), name, us, rate, limit > 0 ? 100 * rate / limit : 0.0);
      }
    }
  }
}

// How a layer holds weights for prompts, and what it does with their inputs.
struct PromptKind {
  const char* name;
  Coding coding;
  ActivationFormat activations = ActivationFormat::kNone;
  float threshold = 0;
};

// Weights that share x, of any numbers.
std::vector<Weight> random_weights(GpuQueue& queue, std::span<const int64_t> outs, int64_t in,
                                   const PromptKind& kind) {
  std::vector<Weight> weights;
  const auto fill = [&](Tensor tensor) {
    gpu_fill_bf16(tensor.mutable_data<uint16_t>(), static_cast<int64_t>(tensor.byte_count() / 2),
                  static_cast<uint32_t>(weights.size() + 1), queue.stream());
    return tensor;
  };
  const Coding& coding = kind.coding;
  for (int64_t out : outs) {
    if (coding.bits == 16) {
      weights.emplace_back(fill(Tensor::allocate_on(&queue, DType::kBF16, {out, in})));
      continue;
    }
    QuantizedTensor weight{
        .format = coding.format, .bits = coding.bits, .out_features = out, .in_features = in};
    const int64_t tiles = tile_count(out), words = piece_count(in, coding.bits) * kPieceBytes / 4;
    weight.group_size = kept_group_size(in, coding.group_size, has_codebook(coding.format));
    weight.codes = fill(
        Tensor::allocate_on(&queue, DType::kI32, {tiles, words}).part(0, DType::kBF16, {tiles * words * 2}));
    weight.scales =
        Tensor::allocate_on(&queue, DType::kF16, {tiles, kept_groups(in, weight.group_size), kTileOutputs});
    check(cudaMemset(weight.scales.mutable_bytes(), 0x1c, weight.scales.byte_count()));
    weight.activations = kind.activations;
    weight.outlier_threshold = kind.threshold;
    weights.emplace_back(std::move(weight));
  }
  return weights;
}

// All that a layer does for a product of a prompt: weights made ready, inputs rounded. Outliers: six columns.
void print_prompts() {
  GpuQueue queue(0);
  GpuLibraries libraries(queue);
  Workspace workspace(queue);
  const OpContext context{.workspace = &workspace, .gpu = &queue, .libraries = &libraries};
  const double limit = measure_matrix_rate(queue, libraries);
  const Coding rows_of_int8{"int8", 8, 128, Format::kInt8};
  const PromptKind kinds[] = {{"bf16", {"bf16", 16}},
                              {"int4", {"int4", 4}},
                              {"nf4", {"nf4", 4, 64, Format::kNf4}},
                              {"fp8", {"fp8", 8, 64, Format::kFp8}},
                              {"int8, inputs bf16", rows_of_int8},
                              {"int8, inputs int8", rows_of_int8, ActivationFormat::kInt8Dynamic},
                              {"the same, 6 outliers", rows_of_int8, ActivationFormat::kInt8Dynamic, 6}};
  std::printf("\nproducts of prompts; those of BF16 %.0f TFLOP/s\n%-18s %6s %-22s %10s %10s %10s\n", limit,
              "weights", "rows", "kind", "us", "TFLOP/s", "of bf16");
  const std::pair<const char*, std::pair<std::vector<int64_t>, int64_t>> layers[] = {
      {"q, k, v", {{1536, 256, 256}, 1536}},
      {"o", {{1536}, 1536}},
      {"gate, up", {{8960, 8960}, 1536}},
      {"down", {{1536}, 8960}}};
  for (const auto& [name, shape] : layers) {
    const auto& [outs, in] = shape;
    for (int64_t rows : {64, 128, 256, 512, 1024, 2048, 16384}) {
      void* const x = allocate(rows * in * 2);
      gpu_fill_bf16(static_cast<uint16_t*>(x), rows * in, 9, queue.stream());
      for (int64_t column = 0; column < 6; ++column) {
        const uint16_t outlier = 0x4120;  // 10
        check(cudaMemcpy(static_cast<uint16_t*>(x) + column * 200 + 7, &outlier, 2, cudaMemcpyHostToDevice));
      }
      for (const PromptKind& kind : kinds) {
        const auto weights = random_weights(queue, outs, in, kind);
        std::vector<MatmulOutput> outputs;
        int64_t all = 0;
        for (const Weight& weight : weights) {
          const int64_t out = out_features(weight);
          all += out;
          outputs.push_back({.weight = &weight, .y = {allocate(rows * out * 2), DType::kBF16}});
        }
        constexpr int kLaunches = 10;
        const double us =
            1e3 / kLaunches *
            gpu_median_ms(
                [&] {
                  for (int i = 0; i < kLaunches; ++i)
                    matmul(context, ConstActivations{x, DType::kBF16}, rows, outputs, MatmulMode::kPrefill);
                },
                queue.stream());
        queue.wait("prompts");
        const double rate = 2 * static_cast<double>(rows * all * in) / us * 1e-6;
        std::printf("%-18s %6lld %-22s %10.1f %10.0f %9.0f%%\n", name, static_cast<long long>(rows),
                    kind.name, us, rate, limit > 0 ? 100 * rate / limit : 0.0);
        for (const MatmulOutput& output : outputs) check(cudaFree(output.y.data));
      }
      check(cudaFree(x));
    }
  }
}

int run(std::string_view part) {
  if (!gpu_support().problem.empty()) {
    std::fprintf(stderr, "gpu_bench: %s\n", gpu_support().problem.c_str());
    return 1;
  }
  const Gpu& gpu = gpu_support().gpus[0];
  const GpuLimits limits = measure_gpu_limits();
  std::printf("%s, %d multiprocessors, L2 %.0f MB; copy %.0f GB/s, read %.0f GB/s\n", gpu.name.c_str(),
              gpu.multiprocessors, static_cast<double>(gpu.l2_bytes) / 1e6, limits.copy_gb_per_s,
              limits.read_gb_per_s);
  if (part.empty() || part == "products") print_products(gpu, limits);
  if (part.empty() || part == "prompts") print_prompts();
  if (part.empty() || part == "layers") print_layers();
  if (part.empty() || part == "attention") print_attention();
  if (part.empty() || part == "sampling") print_sampling();
  return 0;
}

}  // namespace
}  // namespace lowbit

int main(int count, char** arguments) { return lowbit::run(count > 1 ? arguments[1] : ""); }
