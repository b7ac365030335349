#include "model/model.h"

#include "base/fail.h"
#include "model/decoder_block.h"
#include "ops/fused.h"
#include "ops/parallel.h"

#include <algorithm>
#include <cmath>

namespace lowbit {

const Architecture& find_architecture(const Json& config) {
  std::string type;
  if (const Json* value = config.find("model_type"); value && value->is_string()) type = value->as_string();
  std::string known;
  for (const Architecture& architecture : architectures()) {
    if (architecture.model_type == type) return architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture.model_type);
  }
  fail(ErrorCode::kUnsupported, "config.json: model_type is \"{}\"; lowbit knows {}", type, known);
}

Model Model::create(const Json& config, const NamedWeights& weights) {
  const Architecture& architecture = find_architecture(config);
  Model model;
  model.config_ = architecture.read_config(config);
  const ModelConfig& shape = model.config_;
  const WeightReader reader(weights);
  const std::string head = architecture.head;
  if (!reader.has(architecture.embedding) && shape.tie_word_embeddings && reader.has(head + ".weight")) {
    model.embedding_ = reader.matrix(head + ".weight", shape.vocab_size, shape.hidden_size);
  } else {
    model.embedding_ = reader.matrix(architecture.embedding, shape.vocab_size, shape.hidden_size);
  }
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    model.blocks_.push_back(architecture.make_block(shape, weights, layer));
  }
  model.norm_ = reader.vector(architecture.final_norm, shape.hidden_size);
  model.is_tied_ = shape.tie_word_embeddings;
  if (model.is_tied_) {
    model.head_ = {head, model.embedding_, {}};
  } else {
    model.head_ = reader.linear(head, shape.vocab_size, shape.hidden_size, false);
  }
  return model;
}

bool Model::has_fixed_weights() const {
  return std::all_of(blocks_.begin(), blocks_.end(),
                     [](const auto& block) { return block->has_fixed_weights(); });
}

void Model::embed(const OpContext& ops, const TokenIds& tokens, float* hidden) const {
  for (int32_t id : tokens.ids) {
    if (id < 0 || id >= config_.vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token id {} is outside of the model's vocabulary of {}", id,
           config_.vocab_size);
    }
  }
  embedding(ops, embedding_, tokens, hidden);
}

void Model::final_norm(const OpContext& ops, const float* hidden, int64_t rows, Activations normed) const {
  rms_norm(ops, hidden, rows, norm_, config_.rms_norm_eps, normed);
}

void Model::logits(const OpContext& ops, const float* hidden, int64_t rows, MatmulMode mode, float* logits,
                   const KeptRows* kept) const {
  const MatmulOutput output{&head_.weight, head_.bias.empty() ? nullptr : &head_.bias, logits};
  matmul_normed(ops, {hidden, &norm_, config_.rms_norm_eps, kept}, rows, std::span(&output, 1), mode);
}

void Model::move_final_norm(const MoveWeight& move) { norm_ = moved(norm_, move); }

void Model::move_frame(const MoveWeight& move) {
  move_final_norm(move);
  embedding_ = move(embedding_);
  head_ = {head_.module, is_tied_ ? embedding_ : move(head_.weight), moved(head_.bias, move)};
}

RopeTable Model::rope_table(const OpContext& ops, int64_t positions) const {
  const RopeFrequencies frequencies = rope_frequencies(config_);
  const int64_t pairs = static_cast<int64_t>(frequencies.inverse.size());
  RopeTable table{Tensor::allocate(DType::kF32, {positions, pairs}),
                  Tensor::allocate(DType::kF32, {positions, pairs})};
  float* cosines = table.cosines.mutable_data<float>();
  float* sines = table.sines.mutable_data<float>();
  split_work(ops, positions, chunk_for(pairs, 1024), [&](int64_t begin, int64_t end, int) {
    for (int64_t position = begin; position < end; ++position) {
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(position) * frequencies.inverse[static_cast<size_t>(i)];
        cosines[position * pairs + i] = static_cast<float>(std::cos(angle) * frequencies.attention_factor);
        sines[position * pairs + i] = static_cast<float>(std::sin(angle) * frequencies.attention_factor);
      }
    }
  });
  if (!ops.gpu) return table;
  return {copied_to(*ops.gpu, table.cosines), copied_to(*ops.gpu, table.sines)};
}

}  // namespace lowbit
