#include "checkpoint/gptq_read.h"

#include "base/fail.h"
#include "checkpoint/reorder.h"
#include "format/affine.h"
#include "format/bits.h"

#include <cstring>
#include <set>

namespace lowbit {
namespace {

// The tensors of one module as the file has them; g_idx may be missing.
struct RawModule {
  std::string name;
  Tensor qweight, qzeros, scales, g_idx;
};

// What the modules showed, for the notes and the summary.
struct Findings {
  std::vector<std::string> v1_zeros, v2_zeros;  // symmetric modules, by the value of their zero points
  std::vector<std::string> varied_zeros;        // declared symmetric, but their zero points are not
  std::vector<std::string> borrowed, scattered, no_g_idx, zero_g_idx, rounded_scales, excluded;
};

const Tensor* find(const Checkpoint& checkpoint, const std::string& name) {
  const auto place = checkpoint.files.tensors.find(name);
  return place == checkpoint.files.tensors.end() ? nullptr : &place->second;
}

Tensor part(const Checkpoint& checkpoint, const std::string& module, const char* suffix, size_t rank) {
  const std::string name = module + suffix;
  const Tensor* tensor = find(checkpoint, name);
  if (!tensor) fail(ErrorCode::kCorruptFile, "[gptq] {}.qweight is there, but {} is not", module, name);
  if (tensor->shape().size() != rank) {
    fail(ErrorCode::kCorruptFile, "[gptq] {} has the shape {}, expected {} dimensions", name,
         shape_text(tensor->shape()), rank);
  }
  const bool is_scales = std::string_view(suffix) == ".scales";
  if (is_scales ? !is_floating(tensor->dtype()) : tensor->dtype() != DType::kI32) {
    fail(ErrorCode::kCorruptFile, "[gptq] {} is {}, expected {}", name, dtype_name(tensor->dtype()),
         is_scales ? "F16, BF16 or F32" : "I32");
  }
  return *tensor;
}

RawModule raw_module(const Checkpoint& checkpoint, const std::string& name) {
  RawModule raw{name,
                part(checkpoint, name, ".qweight", 2),
                part(checkpoint, name, ".qzeros", 2),
                part(checkpoint, name, ".scales", 2),
                {}};
  if (find(checkpoint, name + ".g_idx")) raw.g_idx = part(checkpoint, name, ".g_idx", 1);
  return raw;
}

// The bits that the sizes of a module can mean, 0 when none fits.
int bits_of_shapes(const RawModule& raw) {
  const int64_t out = raw.qweight.size(1);
  for (int bits : {4, 8, 3, 2}) {
    if (packed_words(out, bits) != raw.qzeros.size(1)) continue;
    if (raw.g_idx.empty() || packed_words(raw.g_idx.size(0), bits) == raw.qweight.size(0)) return bits;
  }
  return 0;
}

// Checks every size of the module against its options and returns the empty shell of the weight.
QuantizedTensor checked_shape(const RawModule& raw, const AffineOptions& options) {
  const int bits = options.bits;
  QuantizedTensor weight;
  weight.bits = bits;
  weight.out_features = raw.qweight.size(1);
  weight.in_features = raw.g_idx.empty() ? raw.qweight.size(0) * 32 / bits : raw.g_idx.size(0);
  const int64_t columns = weight.in_features, rows = weight.out_features;
  if (columns <= 0 || rows <= 0) {
    fail(ErrorCode::kCorruptFile, "[gptq] {}.qweight has the shape {}: a module cannot be empty", raw.name,
         shape_text(raw.qweight.shape()));
  }
  if (packed_words(columns, bits) != raw.qweight.size(0) || packed_words(rows, bits) != raw.qzeros.size(1)) {
    const int found = bits_of_shapes(raw);
    fail(ErrorCode::kCorruptFile,
         "[gptq] {}: the config says {} bits, but qweight {} and qzeros {} {}for {} inputs", raw.name, bits,
         shape_text(raw.qweight.shape()), shape_text(raw.qzeros.shape()),
         found ? fmt::format("hold {} bits ", found) : std::string("fit no number of bits "), columns);
  }
  weight.group_size = std::min<int64_t>(effective_group_size(columns, options.group_size), columns);
  const int64_t groups = weight.groups();
  if (raw.scales.shape() != Shape{groups, rows} || raw.qzeros.size(0) != groups) {
    fail(ErrorCode::kCorruptFile,
         "[gptq] {}: {} inputs in groups of {} make {} groups, so scales must be {} and qzeros {}; found {} "
         "and {}",
         raw.name, columns, weight.group_size, groups, shape_text({groups, rows}),
         shape_text({groups, packed_words(rows, bits)}), shape_text(raw.scales.shape()),
         shape_text(raw.qzeros.shape()));
  }
  return weight;
}

enum class StoredZeros { kV1Fields, kV1Words, kV2 };

// qzeros [groups, packed_words(out)] -> U8 [groups, out], the offset of version 1 undone.
Tensor unpacked_zeros(const Tensor& qzeros, int64_t rows, int bits, StoredZeros stored) {
  const int64_t groups = qzeros.size(0), words = qzeros.size(1);
  Tensor zeros = Tensor::allocate(DType::kU8, {groups, rows});
  uint8_t* values = zeros.mutable_data<uint8_t>();
  const uint32_t mask = (1u << bits) - 1u;
  const uint32_t ones = 0xffffffffu / mask;  // 1 in every field, for 2, 4 and 8 bits
  const bool adds_to_words = stored == StoredZeros::kV1Words && bits != 3;
  const uint32_t add_to_fields = stored != StoredZeros::kV2 && !adds_to_words ? 1 : 0;
  std::vector<uint32_t> line(static_cast<size_t>(words));
  for (int64_t group = 0; group < groups; ++group) {
    std::memcpy(line.data(), qzeros.data<uint32_t>() + group * words, line.size() * sizeof(uint32_t));
    if (adds_to_words) {
      for (uint32_t& word : line) word += ones;
    }
    uint8_t* row_values = values + group * rows;
    unpack_bits(line.data(), 1, rows, bits, row_values, 1);
    for (int64_t row = 0; row < rows; ++row) {
      row_values[row] = static_cast<uint8_t>((row_values[row] + add_to_fields) & mask);
    }
  }
  return zeros;
}

bool all_equal(const Tensor& bytes, int value) {
  const uint8_t* values = bytes.data<uint8_t>();
  for (int64_t i = 0; i < bytes.element_count(); ++i) {
    if (values[i] != value) return false;
  }
  return true;
}

// The true zero points, or an empty tensor when all of them are the middle code.
Tensor zero_points(const RawModule& raw, const AffineOptions& options, int64_t rows,
                   const GptqSettings& settings, Findings& findings) {
  const int bits = options.bits, middle = 1 << (bits - 1);
  if (options.sym) {
    // A symmetric module has one zero point, so its value tells the version, whatever the config says.
    const Tensor stored = unpacked_zeros(raw.qzeros, rows, bits, StoredZeros::kV2);
    if (all_equal(stored, middle - 1)) {
      findings.v1_zeros.push_back(raw.name);
      return {};
    }
    if (all_equal(stored, middle)) {
      findings.v2_zeros.push_back(raw.name);
      return {};
    }
    findings.varied_zeros.push_back(raw.name);
  }
  if (settings.version == "gptq_v2") {
    Tensor zeros = unpacked_zeros(raw.qzeros, rows, bits, StoredZeros::kV2);
    return all_equal(zeros, middle) ? Tensor() : zeros;
  }
  Tensor by_field = unpacked_zeros(raw.qzeros, rows, bits, StoredZeros::kV1Fields);
  Tensor by_word = unpacked_zeros(raw.qzeros, rows, bits, StoredZeros::kV1Words);
  if (std::memcmp(by_field.bytes(), by_word.bytes(), by_field.byte_count()) != 0)
    findings.borrowed.push_back(raw.name);
  Tensor zeros = settings.subtracts_from_words() ? by_word : by_field;
  return all_equal(zeros, middle) ? Tensor() : zeros;
}

// Sets codes and column_order from qweight and g_idx.
void read_codes(const RawModule& raw, QuantizedTensor& weight, Findings& findings) {
  weight.codes = raw.qweight;
  if (raw.g_idx.empty()) {
    findings.no_g_idx.push_back(raw.name);
    return;
  }
  switch (apply_group_index(fmt::format("[gptq] {}.g_idx", raw.name), raw.g_idx, weight)) {
    case GroupIndex::kSequential:
      return;
    case GroupIndex::kUnfilled:
      findings.zero_g_idx.push_back(raw.name);
      return;
    case GroupIndex::kActOrder:
      findings.scattered.push_back(raw.name);
      return;
  }
}

// Whether the architecture has a bias there; nothing when it is not known. AutoGPTQ and optimum stored a bias
// of zeros for every module.
std::optional<bool> expects_bias(const Json& config, const std::string& module) {
  auto flag = [&](const char* key) {
    const Json* value = config.find(key);
    return value && value->is_bool() && value->as_bool();
  };
  std::string type;
  if (const Json* value = config.find("model_type"); value && value->is_string()) type = value->as_string();
  const std::string leaf = module.substr(module.rfind('.') + 1);
  const bool is_attention = leaf == "q_proj" || leaf == "k_proj" || leaf == "v_proj";
  const bool is_mlp = leaf == "gate_proj" || leaf == "up_proj" || leaf == "down_proj";
  if (leaf == "lm_head") return false;
  if (!is_attention && !is_mlp && leaf != "o_proj") return std::nullopt;
  if (type == "qwen2") return is_attention;
  if (type == "mistral") return false;
  if (type == "llama" || type == "qwen3") return is_mlp ? flag("mlp_bias") : flag("attention_bias");
  return std::nullopt;
}

bool is_all_zero(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.element_count(); ++i) {
    if (float_at(tensor, i) != 0) return false;
  }
  return true;
}

// "12 modules (a, b, c, ...)"
std::string listed(const std::vector<std::string>& names) {
  std::string text = fmt::format("{} module{} (", names.size(), names.size() == 1 ? "" : "s");
  for (size_t i = 0; i < names.size() && i < 3; ++i) text += (i ? ", " : "") + names[i];
  return text + (names.size() > 3 ? ", ...)" : ")");
}

void summarize(const Findings& findings, const GptqSettings& settings, Checkpoint& checkpoint) {
  std::vector<std::string>& notes = checkpoint.notes;
  QuantizationInfo& info = *checkpoint.quantization;
  info.group_order = findings.scattered.empty() ? "sequential" : "act-order";
  const bool has_v1 = !findings.v1_zeros.empty(), has_v2 = !findings.v2_zeros.empty();
  info.found_version = has_v1 && !has_v2 ? "gptq" : has_v2 && !has_v1 ? "gptq_v2" : "";
  if (has_v1 && has_v2) {
    notes.push_back(
        fmt::format("zero points of version 1 in {} and of version 2 in {}; each was read by its values",
                    listed(findings.v1_zeros), listed(findings.v2_zeros)));
  } else if (!info.found_version.empty() && info.found_version != settings.version) {
    notes.push_back(
        fmt::format("the config says {}, but the zero points are stored as in {}; read by their values",
                    settings.version, info.found_version));
  }
  auto note = [&](const std::vector<std::string>& modules, std::string_view text) {
    if (!modules.empty()) notes.push_back(fmt::format("{}: {}", listed(modules), text));
  };
  note(findings.varied_zeros,
       "declared symmetric, but the zero points are not the middle code; read as asymmetric");
  note(findings.borrowed,
       settings.subtracts_from_words()
           ? "a zero point of 0 borrowed from its neighbours; undone in whole words, as it was made"
           : "a stored zero point of 2^bits - 1 was read as zero point 0; engines differ on these files");
  note(findings.no_g_idx, "no g_idx; columns taken in their own order");
  note(findings.zero_g_idx, "g_idx holds only zeros; columns taken in their own order");
  note(findings.rounded_scales, "scales rounded to F16");
  note(findings.excluded, "quantized, although a \"-:\" rule of dynamic excludes it");
}

// Dense tensors beside the quantized modules; drops biases of zeros that the architecture does not have.
void add_dense(const std::set<std::string>& quantized_tensors, const std::set<std::string>& modules,
               Checkpoint& checkpoint) {
  std::vector<std::string> dropped, kept;
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (quantized_tensors.count(name)) continue;
    const bool is_bias = name.size() > 5 && name.substr(name.size() - 5) == ".bias";
    const std::string module = is_bias ? name.substr(0, name.size() - 5) : "";
    if (is_bias && modules.count(module) && is_floating(tensor.dtype()) &&
        expects_bias(checkpoint.config, module) == std::optional<bool>(false)) {
      (is_all_zero(tensor) ? dropped : kept).push_back(module);
      if (dropped.size() && dropped.back() == module) continue;
    }
    checkpoint.weights.emplace(name, tensor);
  }
  if (!dropped.empty()) {
    checkpoint.notes.push_back(listed(dropped) +
                               ": a bias of zeros, which the architecture does not have, was dropped");
  }
  if (!kept.empty()) {
    checkpoint.notes.push_back("warning: " + listed(kept) +
                               ": a bias that is not zero, which the architecture does not have");
  }
}

}  // namespace

void read_gptq_weights(const GptqSettings& settings, std::string_view where, Checkpoint& checkpoint) {
  constexpr std::string_view kEnding = ".qweight";
  std::set<std::string> modules, quantized_tensors;
  for (const auto& [name, tensor] : checkpoint.files.tensors) {
    if (name.size() > kEnding.size() &&
        std::string_view(name).substr(name.size() - kEnding.size()) == kEnding) {
      modules.insert(name.substr(0, name.size() - kEnding.size()));
    }
  }
  if (modules.empty()) {
    fail(ErrorCode::kCorruptFile,
         "{} says that the model is quantized with GPTQ, but no tensor ends in .qweight", where);
  }
  Findings findings;
  for (const std::string& name : modules) {
    const RawModule raw = raw_module(checkpoint, name);
    const AffineOptions options = settings.module_options(name, where);
    if (!settings.dynamic.empty() && settings.dynamic.match(name).is_excluded)
      findings.excluded.push_back(name);
    QuantizedTensor weight = checked_shape(raw, options);
    // F16 is what every writer stores but for some of AutoGPTQ's BF16 files.
    bool is_exact = true;
    weight.scales = half_scales(fmt::format("[gptq] {}.scales", name), raw.scales, is_exact);
    if (!is_exact) findings.rounded_scales.push_back(name);
    weight.zero_points = zero_points(raw, options, weight.out_features, settings, findings);
    read_codes(raw, weight, findings);
    for (const char* suffix : {".qweight", ".qzeros", ".scales", ".g_idx"})
      quantized_tensors.insert(name + suffix);
    if (find(checkpoint, name + ".weight")) {
      fail(ErrorCode::kCorruptFile,
           "[gptq] {} has both a .weight and a .qweight; which one counts cannot be told", name);
    }
    checkpoint.weights.emplace(name + ".weight", std::move(weight));
  }
  add_dense(quantized_tensors, modules, checkpoint);
  summarize(findings, settings, checkpoint);
}

}  // namespace lowbit
