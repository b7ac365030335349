#include "runtime/forward.h"

#include "base/fail.h"
#include "ops/fused.h"

#include <algorithm>
#include <cstring>

namespace lowbit {
namespace {

constexpr std::string_view kCacheHelps =
    "use a smaller --batch-size or --context, or fewer --max-new-tokens; or more --kv-cache-tokens, "
    "for which layers are streamed";
constexpr std::string_view kForwardHelps =
    "use a smaller --batch-size or --context, or more --kv-cache-tokens, for which layers are streamed";

}  // namespace

KvCache::KvCache(const ModelConfig& config, int64_t sequences, int64_t capacity, DType dtype, GpuQueue* gpu,
                 Layers layers)
    : sequences_(sequences),
      capacity_(capacity),
      kv_heads_(config.kv_heads),
      dtype_(dtype),
      layers_(layers),
      lengths_(static_cast<size_t>(sequences), 0) {
  const int64_t part = config.kv_heads * capacity * config.head_dim;
  part_bytes_ = part * static_cast<int64_t>(dtype_size(dtype));
  const GpuPhase phase(gpu, {.use = GpuUse::kCache,
                             .what = "the keys and values",
                             .tokens = sequences * capacity,
                             .helps = kCacheHelps});
  storage_ =
      Tensor::allocate_on(gpu, dtype, {layers == Layers::kShared ? 1 : config.layers, sequences, 2, part});
}

uint64_t KvCache::bytes_per_token(const ModelConfig& config, DType dtype) {
  return static_cast<uint64_t>(config.layers * 2 * config.kv_heads * config.head_dim) * dtype_size(dtype);
}

void* KvCache::keys(int64_t sequence) {
  return static_cast<char*>(storage_.mutable_bytes()) + sequence * 2 * part_bytes_;
}

void* KvCache::values(int64_t sequence) { return static_cast<char*>(keys(sequence)) + part_bytes_; }

StepData::StepData(const OpContext& ops, std::span<const SequenceTokens> batch, KvCache& cache) {
  set(ops, batch, cache);
}

StepData StepData::view() const {
  StepData view;
  view.sequences_ = sequences_;
  view.ids_ = ids_, view.positions_ = positions_, view.types_ = types_;
  view.sequences_there_ = sequences_there_, view.arrivals_there_ = arrivals_there_;
  view.ids_there_ = ids_there_, view.positions_there_ = positions_there_;
  return view;
}

void StepData::set(const OpContext& ops, std::span<const SequenceTokens> batch, KvCache& cache) {
  sequences_.clear(), ids_.clear(), positions_.clear(), types_.clear();
  for (const SequenceTokens& tokens : batch) {
    const int64_t count = static_cast<int64_t>(tokens.ids.size()), start = cache.length(tokens.sequence);
    if (start + count > cache.capacity()) {
      fail(ErrorCode::kInternal, "a KV cache of {} positions cannot take {} more behind {}", cache.capacity(),
           count, start);
    }
    sequences_.push_back({this->tokens(), count, start, cache.capacity(), cache.keys(tokens.sequence),
                          cache.values(tokens.sequence)});
    ids_.insert(ids_.end(), tokens.ids.begin(), tokens.ids.end());
    types_.insert(types_.end(), tokens.types.begin(), tokens.types.end());
    for (int64_t i = 0; i < count; ++i) positions_.push_back(static_cast<int32_t>(start + i));
  }
  if (!types_.empty() && types_.size() != ids_.size())
    fail(ErrorCode::kInternal, "{} token types for {} tokens", types_.size(), ids_.size());
  if (!ops.gpu) return;
  std::vector<char> all;
  auto append = [&](const auto& values) {
    const size_t place = all.size();
    all.resize(place + values.size() * sizeof values[0]);
    std::memcpy(all.data() + place, values.data(), all.size() - place);
    return place;
  };
  append(sequences_);
  const size_t ids_at = append(ids_), positions_at = append(positions_);
  const size_t arrivals_at =
      append(std::vector<int32_t>(sequences_.size() * static_cast<size_t>(cache.kv_heads())));
  if (!there_) there_.emplace(ops.workspace->take(all.size()));
  ops.gpu->copy_in(there_->as<void>(), all.data(), all.size());
  sequences_there_ = there_->as<AttentionSequence>();
  ids_there_ = reinterpret_cast<const int32_t*>(there_->as<char>() + ids_at);
  arrivals_there_ = reinterpret_cast<int32_t*>(there_->as<char>() + arrivals_at);
  positions_there_ = reinterpret_cast<const int32_t*>(there_->as<char>() + positions_at);
}

GpuPurpose forward_purpose(int64_t tokens) {
  return {.use = GpuUse::kWork, .what = "a forward pass", .tokens = tokens, .helps = kForwardHelps};
}

void run_blocks(const Model& model, const OpContext& ops, const RopeTables& rope, const StepData& data,
                MatmulMode mode, const KvCache& cache, float* hidden, KeptRows* kept) {
  if (kept) kept->forget();
  StepInput step{.ops = &ops,
                 .tokens = data.tokens(),
                 .positions = data.positions(),
                 .rope = &rope,
                 .sequences = data.sequences(),
                 .cache_dtype = cache.dtype(),
                 .mode = mode,
                 .kept = kept};
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    step.layer_offset = layer * cache.layer_bytes();
    step.next_norm = model.norm_behind(layer);
    model.block(layer).run(step, hidden);
  }
}

void forward(const Model& model, const OpContext& ops, const RopeTables& rope,
             std::span<const SequenceTokens> batch, MatmulMode mode, KvCache& cache, float* hidden) {
  const StepData data(ops, batch, cache);
  model.embed(ops, data.ids(), data.positions(), hidden, data.types());
  run_blocks(model, ops, rope, data, mode, cache, hidden);
  for (const SequenceTokens& tokens : batch) {
    cache.set_length(tokens.sequence,
                     cache.length(tokens.sequence) + static_cast<int64_t>(tokens.ids.size()));
  }
}

void forward_windows(const Model& model, const OpContext& ops, std::span<const std::vector<int32_t>> windows,
                     int64_t batch_size, DType cache_dtype,
                     const std::function<void(size_t window, const float* hidden)>& rows,
                     std::span<const std::vector<int32_t>> types) {
  size_t longest = 0;
  for (const auto& window : windows) longest = std::max(longest, window.size());
  if (longest == 0) return;
  const GpuPhase phase(ops.gpu,
                       forward_purpose(std::min<int64_t>(batch_size, static_cast<int64_t>(windows.size())) *
                                       static_cast<int64_t>(longest)));
  const RopeTables rope = model.rope_tables(ops, static_cast<int64_t>(longest));
  const int64_t width = model.config().hidden_size;
  batch_size = std::clamp<int64_t>(batch_size, 1, static_cast<int64_t>(windows.size()));
  // On a GPU, where kernels begin before those of the layer before have ended, layers keep their own.
  KvCache cache(model.config(), batch_size, static_cast<int64_t>(longest), cache_dtype, ops.gpu,
                ops.gpu ? KvCache::Layers::kApart : KvCache::Layers::kShared);
  for (size_t first = 0; first < windows.size(); first += static_cast<size_t>(batch_size)) {
    const size_t count = std::min(static_cast<size_t>(batch_size), windows.size() - first);
    std::vector<SequenceTokens> batch;
    int64_t tokens = 0;
    for (size_t i = 0; i < count; ++i) {
      cache.set_length(static_cast<int64_t>(i), 0);
      batch.push_back({static_cast<int64_t>(i), windows[first + i],
                       types.empty() ? std::span<const int32_t>() : std::span(types[first + i])});
      tokens += static_cast<int64_t>(windows[first + i].size());
    }
    const Scratch hidden = ops.workspace->take(static_cast<size_t>(tokens * width) * sizeof(float));
    forward(model, ops, rope, batch, MatmulMode::kPrefill, cache, hidden.as<float>());
    int64_t row = 0;
    for (size_t i = 0; i < count; ++i) {
      rows(first + i, hidden.as<float>() + row * width);
      row += static_cast<int64_t>(windows[first + i].size());
    }
  }
}

}  // namespace lowbit
