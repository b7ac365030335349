#include "model/model.h"

#include "base/fail.h"
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

bool is_conv1d(const Json& config, std::string_view module) {
  const Json* type = config.find("model_type");
  for (const Architecture& architecture : architectures()) {
    if (type && type->is_string() && architecture.model_type == type->as_string())
      return architecture.has_conv1d && module != architecture.head;
  }
  return false;
}

Model Model::create(const Json& config, const NamedWeights& given) {
  const Architecture& architecture = find_architecture(config);
  Model model;
  model.config_ = architecture.read_config(config);
  const ModelConfig& shape = model.config_;
  const std::string base(architecture.base), embedding = base + std::string(architecture.embedding),
                                             head = std::string(architecture.head) + ".weight";
  const WeightReader all(given);
  const bool has_base = all.has(embedding) || !all.has(architecture.embedding);
  NamedWeights completed;
  const bool is_head_alone = has_base && shape.tie_word_embeddings && !all.has(embedding) && all.has(head);
  if (is_head_alone) {
    completed = given;
    completed[embedding] = given.find(head)->second;
  }
  const NamedWeights& weights = is_head_alone ? completed : given;
  const WeightReader reader(weights, has_base ? base : "");
  model.frame_ = architecture.make_frame(shape, reader);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    model.blocks_.push_back(architecture.make_block(shape, reader, layer));
  }
  if (architecture.make_head) {
    model.head_ = architecture.make_head(shape, WeightReader(weights), model.frame_);
  } else if (shape.tie_word_embeddings) {
    model.head_ = {architecture.head, model.frame_.embedding, {}};
  } else {
    model.head_ =
        WeightReader(weights).linear(architecture.head, shape.vocab_size, shape.embedding_width, false);
  }
  return model;
}

Frame make_decoder_frame(const ModelConfig& config, const WeightReader& weights) {
  Frame frame;
  frame.embedding = weights.matrix("embed_tokens.weight", config.vocab_size, config.hidden_size);
  frame.final_norm = weights.rms_norm("norm", config.hidden_size, config.norm_eps);
  return frame;
}

bool Model::has_fixed_weights() const {
  return std::all_of(blocks_.begin(), blocks_.end(),
                     [](const auto& block) { return block->has_fixed_weights(); });
}

std::vector<std::string> Model::frame_linears() const {
  std::vector<std::string> modules;
  if (frame_.transform) modules.push_back(frame_.transform->linear.module);
  if (has_head()) modules.push_back(head_.module);
  return modules;
}

void Model::embed(const OpContext& ops, const TokenIds& tokens, const int32_t* positions, float* hidden,
                  const int32_t* types) const {
  for (int32_t id : tokens.ids) {
    if (id < 0 || id >= config_.vocab_size) {
      fail(ErrorCode::kInvalidArgument, "token id {} is outside of the model's vocabulary of {}", id,
           config_.vocab_size);
    }
  }
  const int64_t count = static_cast<int64_t>(tokens.ids.size()), width = config_.hidden_size;
  if (frame_.project_in) {
    const int64_t elements = count * config_.embedding_width;
    const OpScratch rows(ops, static_cast<size_t>(elements) * sizeof(float));
    embedding(ops, frame_.embedding, tokens, rows.as<float>());
    const ActivationInput input(ops, rows.as<float>(), elements);
    matmul(ops, input.rows(), count, *frame_.project_in, nullptr, hidden, MatmulMode::kDecode);
  } else {
    embedding(ops, frame_.embedding, tokens, hidden);
  }
  if (frame_.embedding_scale != 1) scale(ops, frame_.embedding_scale, count * width, hidden);
  if (!frame_.positions.empty())
    add_positions(ops, frame_.positions, frame_.position_offset, positions, count, hidden);
  add_token_types(ops, types, count, hidden);
  if (!frame_.embedding_norm.is_none()) apply_norm(ops, frame_.embedding_norm, hidden, count, width, hidden);
}

void Model::add_token_types(const OpContext& ops, const int32_t* types, int64_t count, float* hidden) const {
  if (frame_.token_types.empty()) {
    if (types) fail(ErrorCode::kInvalidArgument, "a model of type {} has no token types", config_.model_type);
    return;
  }
  if (!types) return add_positions(ops, frame_.token_types, 0, nullptr, count, hidden);
  for (int64_t i = 0; i < count; ++i) {
    if (types[i] < 0 || types[i] >= config_.token_types) {
      fail(ErrorCode::kInvalidArgument, "token type {} is outside of the model's {}", types[i],
           config_.token_types);
    }
  }
  const Tensor there = placed(ops, std::span(types, static_cast<size_t>(count)));
  add_positions(ops, frame_.token_types, 0, there.data<int32_t>(), count, hidden);
}

bool Model::has_plain_embedding() const {
  return !frame_.project_in && frame_.embedding_scale == 1 && frame_.positions.empty() &&
         frame_.token_types.empty() && frame_.embedding_norm.is_none();
}

bool Model::has_plain_head_input() const {
  return frame_.final_norm.is_rms() && !frame_.project_out && !frame_.transform;
}

void Model::head_input(const OpContext& ops, const float* hidden, int64_t rows, Activations input) const {
  const int64_t width = config_.hidden_size;
  if (!frame_.project_out && !frame_.transform)
    return apply_norm(ops, frame_.final_norm, hidden, rows, width, input);
  const ActivationScratch normed(ops, rows * width);
  if (frame_.transform) {
    const auto& [linear, activation] = *frame_.transform;
    const ActivationInput given(ops, hidden, rows * width);
    matmul(ops, given.rows(), rows, linear.weight, linear.bias.empty() ? nullptr : &linear.bias,
           normed.rows(), MatmulMode::kDecode);
    activate(ops, activation, normed.rows(), rows * width, normed.rows());
    apply_norm(ops, frame_.final_norm, normed.rows(), rows, width,
               frame_.project_out ? normed.rows() : input);
  } else {
    apply_norm(ops, frame_.final_norm, hidden, rows, width, normed.rows());
  }
  if (frame_.project_out)
    matmul(ops, normed.rows(), rows, *frame_.project_out, nullptr, input, MatmulMode::kDecode);
}

void Model::logits(const OpContext& ops, const float* hidden, int64_t rows, MatmulMode mode, float* logits,
                   const KeptRows* kept) const {
  const MatmulOutput output{&head_.weight, head_.bias.empty() ? nullptr : &head_.bias, logits};
  if (has_plain_head_input()) {
    const Norm& norm = frame_.final_norm;
    return matmul_normed(ops, {hidden, &norm.weight, norm.epsilon, kept}, rows, std::span(&output, 1), mode);
  }
  const ActivationScratch input(ops, rows * head_width());
  head_input(ops, hidden, rows, input.rows());
  matmul(ops, input.rows(), rows, std::span(&output, 1), mode);
}

void Model::move_head_input(const MoveWeight& move) {
  frame_.final_norm = frame_.final_norm.moved(move);
  if (frame_.transform) {
    Linear& linear = frame_.transform->linear;
    linear = {linear.module, move(linear.weight), moved(linear.bias, move)};
  }
  if (frame_.project_out) frame_.project_out = move(*frame_.project_out);
}

void Model::move_frame(const MoveWeight& move) {
  move_head_input(move);
  frame_.embedding = move(frame_.embedding);
  if (frame_.project_in) frame_.project_in = move(*frame_.project_in);
  frame_.positions = moved(frame_.positions, move);
  frame_.token_types = moved(frame_.token_types, move);
  frame_.embedding_norm = frame_.embedding_norm.moved(move);
  if (!has_head()) return;
  head_ = {head_.module, is_tied() ? frame_.embedding : move(head_.weight), moved(head_.bias, move)};
}

namespace {

RopeTable rope_table(const OpContext& ops, const ModelConfig& config, const RopeConfig& rope,
                     int64_t positions) {
  const RopeFrequencies frequencies = rope_frequencies(config, rope);
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

}  // namespace

RopeTables Model::rope_tables(const OpContext& ops, int64_t positions) const {
  RopeTables tables;
  if (config_.rotary_dim == 0) return tables;
  tables.all = rope_table(ops, config_, config_.rope, positions);
  if (config_.window_rope) tables.windowed = rope_table(ops, config_, *config_.window_rope, positions);
  return tables;
}

}  // namespace lowbit
