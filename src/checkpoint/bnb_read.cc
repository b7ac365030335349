#include "base/fail.h"
#include "checkpoint/bnb.h"
#include "format/codebook.h"
#include "format/nested_scales.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace lowbit {
namespace {

constexpr std::string_view kState = ".quant_state.bitsandbytes__";
constexpr size_t kMostStateBytes = 1 << 16;
constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

// What belongs to one weight, all names being "<module>.weight" and more.
struct Parts {
  std::string name;  // "<module>.weight"
  Format format = Format::kNf4;
  int64_t group_size = 64, out = 0, in = 0;
  Tensor packed, absmax, nested_absmax, nested_map;
  bool is_nested = false;
  float offset = 0;

  int64_t elements() const { return out * in; }
  int64_t groups() const { return (elements() + group_size - 1) / group_size; }
};

class Reader {
 public:
  Reader(std::string_view where, Checkpoint& checkpoint) : where_(where), checkpoint_(checkpoint) {}

  void read(Format declared) {
    const auto& tensors = checkpoint_.files.tensors;
    std::map<std::string, Format, std::less<>> quantized;
    for (const auto& [name, tensor] : tensors) {
      const size_t at = name.find(kState);
      if (at == name.npos) continue;
      const std::string type = name.substr(at + kState.size());
      if (type != "nf4" && type != "fp4") {
        fail(ErrorCode::kUnsupported, "[bitsandbytes] {}: quantized as \"{}\"; lowbit reads nf4 and fp4",
             name, type.substr(0, 50));
      }
      if (!quantized.emplace(name.substr(0, at), type == "nf4" ? Format::kNf4 : Format::kFp4).second)
        fail(ErrorCode::kCorruptFile, "[bitsandbytes] {} has two quant_state tensors, expected one",
             name.substr(0, at));
    }
    for (const auto& [weight, format] : quantized) {
      if (format != declared) {
        fail(ErrorCode::kCorruptFile,
             "[bitsandbytes] {}: its quant_state is of {}, but {} says bnb_4bit_quant_type {}", weight,
             format_name(format), where_, format_name(declared));
      }
      checkpoint_.weights.insert_or_assign(weight, decoded(parts_of(weight, format)));
    }
    for (const auto& [name, tensor] : tensors) {
      if (is_part(name, quantized)) continue;
      checkpoint_.weights.emplace(name, tensor);
    }
    if (quantized.empty()) {
      fail(ErrorCode::kCorruptFile,
           "{} says load_in_4bit, but no tensor has a {}nf4 or {}fp4 beside it: the weights are not "
           "quantized; remove "
           "quantization_config from the config",
           where_, kState, kState);
    }
  }

 private:
  bool is_part(std::string_view name, const std::map<std::string, Format, std::less<>>& quantized) const {
    return std::any_of(std::begin(kBnbParts), std::end(kBnbParts), [&](const BnbPart& part) {
      if (!name.ends_with(part.ending)) return false;
      const std::string_view module = name.substr(0, name.size() - part.ending.size());
      return quantized.contains(fmt::format("{}.weight", module));
    });
  }

  const Tensor& tensor(const std::string& name) const {
    const auto found = checkpoint_.files.tensors.find(name);
    if (found == checkpoint_.files.tensors.end()) {
      fail(ErrorCode::kCorruptFile,
           "[bitsandbytes] {} is missing: the file is incomplete; save the model again", name);
    }
    return found->second;
  }
  const Tensor& vector(const std::string& name, DType dtype, int64_t count) const {
    const Tensor& found = tensor(name);
    if (found.dtype() != dtype || found.element_count() != count) {
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {} is {} {}, expected {} of {} elements", name,
           dtype_name(found.dtype()), shape_text(found.shape()), dtype_name(dtype), count);
    }
    return found;
  }

  int64_t size_in(const Json& state, std::string_view key, const std::string& name) const {
    const Json* value = state.find(key);
    if (!value || !value->is_integer() || value->as_integer() < 1 || value->as_integer() > kMostSize)
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}: {} is no positive integer", name, key);
    return value->as_integer();
  }

  Parts parts_of(const std::string& weight, Format format) const {
    Parts parts{.name = weight, .format = format};
    const std::string state_name = weight + std::string(kState) + std::string(format_name(format));
    const Tensor& text = tensor(state_name);
    if (text.dtype() != DType::kU8 || text.byte_count() > kMostStateBytes)
      fail(ErrorCode::kCorruptFile,
           "[bitsandbytes] {} is {} {}, expected the U8 bytes of a short JSON object", state_name,
           dtype_name(text.dtype()), shape_text(text.shape()));
    const Json state =
        parse_json(std::string_view(static_cast<const char*>(text.bytes()), text.byte_count()), state_name);
    const Json* type = state.find("quant_type");
    if (!type || !type->is_string() || type->as_string() != format_name(format)) {
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}: quant_type is not \"{}\", as the tensor's name says",
           state_name, format_name(format));
    }
    parts.group_size = size_in(state, "blocksize", state_name);
    const Json* shape = state.find("shape");
    if (!shape || !shape->is_array() || shape->as_array().size() != 2)
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}: shape is not a list of two sizes", state_name);
    for (size_t i = 0; i < 2; ++i) {
      const Json& size = shape->as_array()[i];
      if (!size.is_integer() || size.as_integer() < 1 || size.as_integer() > kMostSize)
        fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}: shape is {}, expected two sizes", state_name,
             shape->dump());
      (i == 0 ? parts.out : parts.in) = size.as_integer();
    }

    parts.packed = tensor(weight);
    const int64_t element = static_cast<int64_t>(dtype_size(parts.packed.dtype())),
                  bytes = ((parts.elements() + 1) / 2 + element - 1) / element * element;
    if (static_cast<int64_t>(parts.packed.byte_count()) != bytes) {
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {} has {} bytes, expected {} for [{}, {}] in 4 bits",
           weight, parts.packed.byte_count(), bytes, parts.out, parts.in);
    }
    const Tensor& map = vector(weight + ".quant_map", DType::kF32, 16);
    for (size_t code = 0; code < 16; ++code) {
      const float found = map.data<float>()[code], known = codebook_of(format)[code];
      if (!(std::abs(found - known) <= 1e-6f)) {
        fail(ErrorCode::kUnsupported,
             "[bitsandbytes] {}.quant_map: value {} is {}, and {} of {}; lowbit knows only that", weight,
             code, found, known, format_name(format));
      }
    }

    parts.is_nested = state.find("nested_blocksize") || state.find("nested_offset");
    parts.absmax = vector(weight + ".absmax", parts.is_nested ? DType::kU8 : DType::kF32, parts.groups());
    if (!parts.is_nested) return parts;
    if (size_in(state, "nested_blocksize", state_name) != NestedScales::kGroupSize)
      fail(ErrorCode::kUnsupported, "[bitsandbytes] {}: nested_blocksize is {}; lowbit reads {}", state_name,
           state.find("nested_blocksize")->dump(), NestedScales::kGroupSize);
    const Json* offset = state.find("nested_offset");
    if (!offset || !offset->is_number() || !std::isfinite(offset->as_number()))
      fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}: nested_offset is no finite number", state_name);
    parts.offset = static_cast<float>(offset->as_number());
    const int64_t outer = (parts.groups() + NestedScales::kGroupSize - 1) / NestedScales::kGroupSize;
    parts.nested_absmax = vector(weight + ".nested_absmax", DType::kF32, outer);
    parts.nested_map = vector(weight + ".nested_quant_map", DType::kF32, 256);
    return parts;
  }

  std::vector<float> scales_of(const Parts& parts) const {
    std::vector<float> scales(static_cast<size_t>(parts.groups()));
    if (!parts.is_nested) {
      std::memcpy(scales.data(), parts.absmax.bytes(), parts.absmax.byte_count());
    } else {
      NestedScales nested;
      const auto* codes = static_cast<const uint8_t*>(parts.absmax.bytes());
      nested.codes.assign(codes, codes + scales.size());
      nested.outer_scales.resize(static_cast<size_t>(parts.nested_absmax.element_count()));
      std::memcpy(nested.outer_scales.data(), parts.nested_absmax.bytes(), parts.nested_absmax.byte_count());
      std::memcpy(nested.map.data(), parts.nested_map.bytes(), sizeof nested.map);
      nested.offset = parts.offset;
      scales = unnested(nested);
    }
    for (size_t i = 0; i < scales.size(); ++i) {
      if (!std::isfinite(scales[i]))
        fail(ErrorCode::kCorruptFile, "[bitsandbytes] {}.absmax: scale {} of {} is not finite", parts.name, i,
             scales.size());
    }
    return scales;
  }

  Weight decoded(const Parts& parts) const {
    const FlatCodes flat{parts.format, parts.group_size, parts.out, parts.in,
                         static_cast<const uint8_t*>(parts.packed.bytes())};
    const std::vector<float> scales = scales_of(parts);
    if (std::optional<QuantizedTensor> weight = from_flat_codes(flat, scales)) return std::move(*weight);
    checkpoint_.notes.push_back(fmt::format(
        "{}: groups of {} values do not fit rows of {}, so it is held as F32 (no quantized kernel reads it)",
        parts.name, parts.group_size, parts.in));
    return dense_of(flat, scales);
  }

  std::string_view where_;
  Checkpoint& checkpoint_;
};

}  // namespace

void read_bnb_weights(Format format, std::string_view where, Checkpoint& checkpoint) {
  Reader(where, checkpoint).read(format);
}

}  // namespace lowbit
