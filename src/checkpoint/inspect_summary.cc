#include "checkpoint/inspect_summary.h"

#include "base/fail.h"
#include "checkpoint/tensor_kinds.h"
#include "format/codebook.h"

namespace lowbit {
namespace {

bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

void find_modules(const InspectSource& source, Summary& summary) {
  if (source.checkpoint) {
    for (const auto& [name, weight] : source.checkpoint->weights) {
      if (std::holds_alternative<QuantizedTensor>(weight))
        summary.modules.insert(name.substr(0, name.size() - 7));
    }
    return;
  }
  for (const auto& [name, tensor] : source.files.tensors) {
    if (ends_with(name, ".qweight")) summary.modules.insert(name.substr(0, name.size() - 8));
  }
  summary.knows_all_parameters =
      summary.modules.empty() && (source.dialect == "huggingface" || source.dialect == "safetensors");
}

const QuantizedTensor& quantized(const InspectSource& source, std::string_view module) {
  return std::get<QuantizedTensor>(source.checkpoint->weights.find(fmt::format("{}.weight", module))->second);
}

// The data type as numbers have it: packed codes are not the words that hold them.
std::string number_format(const InspectSource& source, const MatrixPart& part, std::string_view dtype) {
  if (part.kind != "codes" || !source.checkpoint) return std::string(dtype);
  const QuantizedTensor& weight = quantized(source, part.module);
  if (weight.format != Format::kAffine) return fmt::format("{} codes", format_name(weight.format));
  return fmt::format("{}-bit codes", weight.bits);
}

// Whether the model's head says tokens. transformers writes tie_word_embeddings for other models too.
bool has_token_head(const Json& config) {
  const Json* names = config.find("architectures");
  if (names == nullptr || names->size() == 0 || !names->is_array() || !names->as_array()[0].is_string())
    return true;
  const std::string& name = names->as_array()[0].as_string();
  return name != "BertModel" && !ends_with(name, "ForSequenceClassification");
}

// Where config.json ties the head to the embedding: what the head would add.
int64_t tied_parameters(const InspectSource& source, const Summary& summary) {
  const Json* tie = source.config.find("tie_word_embeddings");
  const bool is_tied = tie != nullptr && tie->is_bool() && tie->as_bool() && has_token_head(source.config);
  if ((!is_tied && summary.waste.head == 0) || summary.modules.count("lm_head") > 0) return 0;
  const auto head = source.files.tensors.find("lm_head.weight");
  const bool has_head = head != source.files.tensors.end();
  for (const auto& [name, tensor] : source.files.tensors) {
    const bool is_table = ends_with(name, "embed_tokens.weight") || ends_with(name, "wte.weight") ||
                          ends_with(name, "embed_in.weight") || ends_with(name, "word_embeddings.weight");
    if (is_table) return has_head && summary.waste.head == 0 ? 0 : tensor.element_count();
  }
  return has_head ? head->second.element_count() : 0;  // some files have the head alone
}

}  // namespace

uint64_t ComponentBytes::total() const {
  uint64_t sum = 0;
  for (const auto& [kind, count] : bytes) sum += count;
  return sum;
}

void TypeCount::add(const TypeCount& other) {
  tensors += other.tensors;
  parameters += other.parameters;
  bytes += other.bytes;
}

Summary summarize(const InspectSource& source) {
  Summary summary;
  find_modules(source, summary);
  for (const SafetensorsFile& file : source.files.files) summary.header_bytes += file.header_bytes;
  for (const auto& [name, tensor] : source.files.tensors) {
    TypeCount count{1, 0, tensor.byte_count()};
    const MatrixPart part =
        part_of(name, [&](std::string_view module) { return summary.modules.count(module) > 0; });
    const std::string_view component = component_of(name), kind = part.kind;
    summary.tensor_bytes += count.bytes;
    summary.components[component].bytes[kind] += count.bytes;
    if (kind != "dense") summary.quantized_bytes += count.bytes;
    const bool is_used = !source.checkpoint || source.checkpoint->weights.count(name) > 0;
    if (kind == "dense" && !is_used) {
      (name == "lm_head.weight"   ? summary.waste.head
       : ends_with(name, ".bias") ? summary.waste.biases
                                  : summary.waste.buffers) += count.bytes;
    } else if (kind == "dense" && (is_floating(tensor.dtype()) || tensor.dtype() == DType::kF8E4M3)) {
      count.parameters = tensor.element_count();
    } else if (kind == "codes" && source.checkpoint) {
      const QuantizedTensor& weight = quantized(source, part.module);
      count.parameters = weight.out_features * weight.in_features;
      summary.quantized_parameters += count.parameters;
    } else if (kind == "g_idx" && source.checkpoint && quantized(source, part.module).column_order.empty()) {
      summary.waste.g_idx += count.bytes;
    }
    if (count.parameters > 0) summary.weight_sizes.push_back(count.parameters);
    summary.components[component].parameters += count.parameters;
    summary.parameters += count.parameters;
    const std::string_view dtype = dtype_name(tensor.dtype());
    summary.dtypes[{std::string(kind == "dense" ? component : kind), std::string(dtype)}].add(count);
    summary.number_formats[number_format(source, part, dtype)].add(count);
  }
  summary.tied_parameters = tied_parameters(source, summary);
  return summary;
}

}  // namespace lowbit
