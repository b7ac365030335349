// BERT: an encoder. Learned positions and token types, norms behind attention and MLP, attention that sees
// all of a sequence; with a head for masked tokens, one for classes of sequences, or none. Devlin et al.,
// arXiv 1810.04805.
#include "base/fail.h"
#include "model/config_reader.h"
#include "model/decoder_block.h"
#include "model/model.h"

namespace lowbit {
namespace {

// By the class that transformers loads a checkpoint into.
constexpr std::pair<std::string_view, HeadKind> kHeads[] = {
    {"BertModel", HeadKind::kNone},
    {"BertForMaskedLM", HeadKind::kTokens},
    {"BertForPreTraining", HeadKind::kTokens},
    {"BertForSequenceClassification", HeadKind::kClasses}};

constexpr size_t kMostLabels = 1 << 14;

HeadKind head_kind_of(const std::string& architecture) {
  if (architecture.empty()) return HeadKind::kNone;
  std::string known;
  for (const auto& [name, kind] : kHeads) {
    if (name == architecture) return kind;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  }
  fail(ErrorCode::kUnsupported, "config.json: architectures is \"{}\"; for bert lowbit knows {}",
       architecture, known);
}

// id2label: {"0": "LABEL_0", ...}. Two labels where there is none, as in transformers.
std::vector<std::string> read_labels(const ConfigReader& reader) {
  const std::string problem = reader.string_or("problem_type", "single_label_classification");
  if (problem != "single_label_classification") {
    fail(ErrorCode::kUnsupported,
         "config.json: problem_type is \"{}\"; only single_label_classification is supported", problem);
  }
  std::vector<std::string> labels;
  if (!reader.has("id2label")) {
    const int64_t count = reader.integer_or("num_labels", 1, kMostLabels, 2);
    for (int64_t i = 0; i < count; ++i) labels.push_back(fmt::format("LABEL_{}", i));
  } else {
    const Json& names = reader.json().get("id2label");
    if (!names.is_object())
      fail(ErrorCode::kCorruptFile, "config.json: id2label is {}, expected an object", names.type_name());
    if (names.size() > kMostLabels) {
      fail(ErrorCode::kUnsupported, "config.json: id2label has {} labels, at most {} are supported",
           names.size(), kMostLabels);
    }
    for (size_t i = 0; i < names.size(); ++i) {
      const Json* name = names.find(std::to_string(i));
      if (!name || !name->is_string()) {
        fail(ErrorCode::kCorruptFile, "config.json: id2label has {} labels, but none that is called \"{}\"",
             names.size(), i);
      }
      labels.push_back(name->as_string());
    }
  }
  if (labels.size() < 2) {
    fail(ErrorCode::kUnsupported,
         "config.json: id2label has {} label, expected 2 or more: regression is not supported",
         labels.size());
  }
  return labels;
}

ModelConfig read_config(const Json& config) {
  const ConfigReader reader(config);
  ModelConfig model = read_sizes(reader, {.intermediate = "intermediate_size"});
  model.max_positions = reader.integer_or("max_position_embeddings", 1, int64_t{1} << 31, 512);
  model.token_types = reader.integer_or("type_vocab_size", 1, 1 << 16, 2);
  model.norm_eps = static_cast<float>(reader.number_or("layer_norm_eps", 0, 1, 1e-12));
  model.activation = reader.activation_or("hidden_act", "gelu");
  model.qkv_bias = model.o_bias = model.mlp_bias = true;
  model.has_norm_first = model.has_final_norm = false;
  model.is_causal = false;
  reader.require("is_decoder", false);
  reader.require("add_cross_attention", false);
  if (const std::string kind = reader.string_or("position_embedding_type", "absolute"); kind != "absolute") {
    fail(ErrorCode::kUnsupported,
         "config.json: position_embedding_type is \"{}\"; only \"absolute\" is supported", kind);
  }
  model.head_kind = head_kind_of(model.architecture);
  if (model.head_kind == HeadKind::kTokens)
    model.tie_word_embeddings = reader.flag_or("tie_word_embeddings", true);
  if (model.head_kind == HeadKind::kClasses) model.labels = read_labels(reader);
  return model;
}

Frame make_frame(const ModelConfig& config, const WeightReader& weights) {
  const WeightReader here = weights.inside("embeddings.");
  const int64_t hidden = config.hidden_size;
  Frame frame;
  frame.embedding = here.matrix("word_embeddings.weight", config.vocab_size, hidden);
  frame.positions = here.table("position_embeddings.weight", config.max_positions, hidden);
  frame.token_types = here.table("token_type_embeddings.weight", config.token_types, hidden);
  frame.embedding_norm = here.layer_norm("LayerNorm", hidden, config.norm_eps);
  if (config.head_kind == HeadKind::kTokens) {
    const WeightReader head = weights.outside().inside("cls.predictions.transform.");
    frame.transform = {head.linear("dense", hidden, hidden, true), config.activation};
    frame.final_norm = head.layer_norm("LayerNorm", hidden, config.norm_eps);
  } else if (config.head_kind == HeadKind::kClasses || weights.has("pooler.dense.weight")) {
    frame.transform = {weights.linear("pooler.dense", hidden, hidden, true), Activation::kTanh};
  }
  return frame;
}

Linear make_head(const ModelConfig& config, const WeightReader& weights, const Frame& frame) {
  switch (config.head_kind) {
    case HeadKind::kTokens: {
      const WeightReader here = weights.inside("cls.predictions.");
      Linear head = config.tie_word_embeddings
                        ? Linear{"cls.predictions.decoder", frame.embedding, {}}
                        : here.linear("decoder", config.vocab_size, config.hidden_size, false);
      if (head.bias.empty())
        head.bias = here.vector(here.has("bias") ? "bias" : "decoder.bias", config.vocab_size);
      return head;
    }
    case HeadKind::kClasses:
      return weights.linear("classifier", static_cast<int64_t>(config.labels.size()), config.hidden_size,
                            true);
    case HeadKind::kNone:
      return {};
    case HeadKind::kNextToken:
      break;
  }
  fail(ErrorCode::kInternal, "bert has no head that foretells the next token");
}

std::unique_ptr<Block> make_block(const ModelConfig& config, const WeightReader& weights, int64_t layer) {
  const WeightReader here = weights.inside(fmt::format("encoder.layer.{}.", layer));
  const WeightReader attention = here.inside("attention.");
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  DecoderParts parts;
  parts.qkv = {attention.linear("self.query", hidden, hidden, true),
               attention.linear("self.key", hidden, hidden, true),
               attention.linear("self.value", hidden, hidden, true)};
  parts.o = attention.linear("output.dense", hidden, hidden, true);
  parts.up = {here.linear("intermediate.dense", intermediate, hidden, true)};
  parts.is_gated = false;
  parts.down = here.linear("output.dense", hidden, intermediate, true);
  parts.activation = config.activation;
  parts.attention_norms.residual = attention.layer_norm("output.LayerNorm", hidden, config.norm_eps);
  parts.mlp_norms.residual = here.layer_norm("output.LayerNorm", hidden, config.norm_eps);
  parts.attention = attention_shape(config, layer);
  parts.has_rope = false;
  return std::make_unique<DecoderBlock>(config, std::move(parts));
}

}  // namespace

extern const Architecture kBert;
const Architecture kBert = {.model_type = "bert",
                            .read_config = read_config,
                            .make_frame = make_frame,
                            .make_block = make_block,
                            .base = "bert.",
                            .embedding = "embeddings.word_embeddings.weight",
                            .head = "cls.predictions.decoder",
                            .make_head = make_head};

}  // namespace lowbit
