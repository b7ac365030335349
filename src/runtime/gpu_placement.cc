#include "runtime/gpu_placement.h"

#include "base/staged_copies.h"
#include "lowbit/bytes.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/matmul_gpu.h"
#include "ops/cuda/weights_gpu.h"
#include "runtime/forward.h"
#include "runtime/layer_stream.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace lowbit {
namespace {

constexpr size_t kAlignment = 256;

constexpr GpuPurpose kLoading = {
    .use = GpuUse::kWeights,
    .what = "loading the weights",
    .helps = "end other programs on it, give more with --max-gpu-memory, or use --device cpu"};

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Tensors one behind the other in a piece of memory; without memory they are only counted.
class Piece {
 public:
  Piece() = default;
  explicit Piece(Tensor memory) : memory_(std::move(memory)) {}

  Tensor take(DType dtype, const Shape& shape) {
    int64_t elements = 1;
    for (int64_t extent : shape) elements *= extent;
    const size_t begin = used_;
    used_ += aligned(std::max<size_t>(1, static_cast<size_t>(elements) * dtype_size(dtype)));
    return memory_.empty() ? Tensor() : memory_.part(begin, dtype, shape);
  }
  size_t used() const { return used_; }

 private:
  Tensor memory_;
  size_t used_ = 0;
};

// Of a forward pass of so many rows, beside weights and cache: hidden states, what one block passes between
// its stages, what a product makes of its weights and inputs, logits, and what loading takes instead if that
// is more.
uint64_t work_bytes(const Model& model, int64_t tokens, const GpuEncoding* encoding) {
  const ModelConfig& config = model.config();
  const int64_t rows = std::min(tokens, kGpuPrefillRows);
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  int64_t product = 0;  // of fused weights, which is taken apart
  for (const Stage& stage : model.block(0).stages()) {
    const Linear& first = model.block(0).linears()[static_cast<size_t>(stage.linears[0])];
    if (stage.linears.size() == 1 && stage.carry_width > 0)
      product = std::max(product, out_features(first.weight));
  }
  const int64_t row =
      config.hidden_size * 4 + 2 * (2 * config.hidden_size + 2 * std::max(q, config.intermediate_size) +
                                    config.intermediate_size + q + 2 * kv + product);
  uint64_t multiplying = 0, loading = 0;
  if constexpr (kHasCuda) {
    // Weights whose inputs are rounded are all made ready at once, others one after the other.
    const auto see = [&](uint64_t& together, const Weight& weight) {
      const auto nothing = [](DType, const Shape&) { return Tensor(); };
      const Weight there = becomes_codes(encoding, weight) ? gpu_layout(weight, nothing, encoding) : weight;
      const auto bytes = static_cast<uint64_t>(matmul_weight_bytes(there)),
                 inputs = static_cast<uint64_t>(matmul_rows_bytes(there, rows));
      together = inputs > 0 ? together + bytes : std::max(together, bytes);
      multiplying = std::max(multiplying, together + inputs);
      loading = std::max<uint64_t>(loading, fill_scratch_bytes(weight, encoding));
    };
    uint64_t table = 0, head = 0;
    see(table, model.embedding_table());
    if (model.has_head()) see(head, model.head().weight);
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      const Block& block = model.block(layer);
      for (const Stage& stage : block.stages()) {
        uint64_t together = 0;
        for (int linear : stage.linears) see(together, block.linears()[static_cast<size_t>(linear)].weight);
      }
    }
  }
  const auto logits =
      std::min<uint64_t>(static_cast<uint64_t>(config.vocab_size) * 4 * 256, uint64_t{64} << 20);
  const auto rope = static_cast<uint64_t>(tokens * config.head_dim) * (config.window_rope ? 8 : 4);
  uint64_t computing = static_cast<uint64_t>(rows * row) + multiplying + logits + rope;
  if constexpr (kHasCuda) computing += GpuLibraries::kWorkspaceBytes;
  return std::max(computing, loading);
}

}  // namespace

GpuSizes gpu_sizes(Model& model, DType cache_dtype, int64_t tokens, const GpuEncoding* encoding) {
  GpuSizes sizes;
  Piece counted;
  const MoveWeight count = [&](const Weight& weight) {
    if constexpr (kHasCuda) {
      gpu_layout(
          weight, [&](DType dtype, Shape shape) { return counted.take(dtype, shape); }, encoding);
    }
    return weight;
  };
  model.move_frame(count);
  sizes.frame = counted.used();
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    counted = Piece();
    model.block(layer).moved(count);
    sizes.layers.push_back(counted.used());
  }
  sizes.tokens = tokens;
  sizes.cache = KvCache::bytes_per_token(model.config(), cache_dtype) * static_cast<uint64_t>(tokens);
  sizes.work = work_bytes(model, tokens, encoding);
  return sizes;
}

uint64_t place_on_gpu(Model& model, const OpContext& context, const GpuSizes& sizes, const GpuPlan& plan,
                      const Log& log, GpuEncoding* encoding) {
  if constexpr (kHasCuda) {
    GpuQueue& queue = *context.gpu;
    const GpuPhase phase(&queue, kLoading);
    StagedCopies copies(queue, *context.threads);
    const auto move_into = [&](Piece& piece) {
      return [&](const Weight& weight) {
        Weight there = gpu_layout(
            weight, [&](DType dtype, Shape shape) { return piece.take(dtype, shape); }, encoding);
        fill_gpu_weight(
            context, weight, there,
            [&](void* to, const void* from, size_t bytes) { copies.copy_in(to, from, bytes); }, encoding);
        return there;
      };
    };

    if (encoding) {
      const auto none = static_cast<uint32_t>(encoding->modules.size());
      encoding->failed = copied_to(queue, Tensor::borrow(nullptr, &none, DType::kU32, {1}));
    }
    std::shared_ptr<LayerStream> stream;
    if (!plan.streamed.empty()) stream = std::make_shared<LayerStream>(queue, plan.buffer_bytes);
    const uint64_t all = std::accumulate(sizes.layers.begin(), sizes.layers.end(), sizes.frame);
    Piece piece(Tensor::allocate_on(&queue, DType::kU8, {static_cast<int64_t>(all - plan.streamed_bytes)}));
    model.move_frame(move_into(piece));
    size_t next = 0;
    for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
      if (next == plan.streamed.size() || plan.streamed[next] != layer) {
        model.set_block(layer, model.block(layer).moved(move_into(piece)));
        continue;
      }
      Piece buffer(stream->buffer(next));
      std::unique_ptr<Block> block = model.block(layer).moved(move_into(buffer));
      stream->keep(buffer.used());
      model.set_block(layer, std::make_unique<StreamedBlock>(std::move(block), stream, next++));
    }
    queue.wait("loading the weights");
    if (encoding) check_encoding(context, *encoding);
    context.workspace->release();
    if (!stream) return 0;

    const double speed = stream->begin();
    const auto bytes = stream->bytes_per_pass();
    const uint64_t limit = queue.memory().limit();
    log.info(fmt::format(
        "{} of {} layers do not fit into {} of GPU memory and are streamed from this machine's{} memory: "
        "expect {:.3g} ms for each step, in which {} are copied at {:.3g} GB/s",
        plan.streamed.size(), model.layer_count(),
        bytes_text(limit > 0 ? limit : queue.memory().available() + queue.memory().figures().used),
        stream->is_pinned() ? "" : " (not pinned: more slowly)", static_cast<double>(bytes) / speed * 1e3,
        bytes_text(bytes), speed / 1e9));
    return plan.streamed_bytes;
  }
  return 0;
}

}  // namespace lowbit
