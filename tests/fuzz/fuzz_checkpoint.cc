// Any quantization_config with any tensors of a module, in every dialect that has one: weights that decode,
// or an Error. The input: a config as JSON; a byte FF, which no JSON has; then tensors, each as a byte for
// its name, one for its type and one for its rank, a byte for each size (255: two bytes follow), and its
// elements (zeros where the input ends). Names are those that dialects give the parts of a module.
#include "checkpoint/bnb.h"
#include "checkpoint/compressed.h"
#include "checkpoint/gptq_read.h"
#include "checkpoint/gptq_settings.h"
#include "checkpoint/lowbit_dialect.h"
#include "lowbit/error.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace {

using lowbit::DType;
using lowbit::Tensor;

constexpr std::string_view kEndings[] = {".weight",
                                         ".weight.absmax",
                                         ".weight.nested_absmax",
                                         ".weight.quant_map",
                                         ".weight.nested_quant_map",
                                         ".weight.quant_state.bitsandbytes__nf4",
                                         ".weight.quant_state.bitsandbytes__fp4",
                                         ".SCB",
                                         ".weight_format",
                                         ".weight_packed",
                                         ".weight_shape",
                                         ".weight_scale",
                                         ".weight_zero_point",
                                         ".weight_g_idx",
                                         ".input_scale",
                                         ".codes",
                                         ".scales",
                                         ".shape",
                                         ".qweight",
                                         ".qzeros",
                                         ".g_idx",
                                         ".bias"};
constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF64,    DType::kI64,
                            DType::kI32, DType::kI8,  DType::kU8,   DType::kF8E4M3, DType::kBool};

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool is_empty() const { return left_ == 0; }
  uint8_t next() {
    uint8_t byte = 0;
    take(&byte, 1);
    return byte;
  }
  int64_t next_size() {
    const int64_t size = next();
    if (size < 255) return size;
    const int64_t low = next();
    return low + 256 * next();
  }
  void take(void* to, size_t size) {
    const size_t count = std::min(size, left_);
    std::memset(to, 0, size);
    if (count > 0) std::memcpy(to, data_, count);
    data_ += count;
    left_ -= count;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

lowbit::TensorFolder tensors_of(Bytes bytes) {
  lowbit::TensorFolder folder;
  while (!bytes.is_empty() && folder.tensors.size() < 24) {
    const uint8_t name = bytes.next();
    const std::string module = name < 128 ? "m" : "lm_head";
    const DType dtype = kTypes[bytes.next() % std::size(kTypes)];
    lowbit::Shape shape(bytes.next() % 4);
    for (int64_t& size : shape) size = bytes.next_size();
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    if (elements > 1 << 16) continue;
    // Memory of exactly this size, so that the sanitizer sees a read past its end.
    const size_t count = static_cast<size_t>(elements) * dtype_size(dtype);
    const std::shared_ptr<void> owner(std::malloc(count), std::free);
    bytes.take(owner.get(), count);
    folder.tensors[module + std::string(kEndings[name % 128 % std::size(kEndings)])] =
        Tensor::borrow(owner, owner.get(), dtype, shape);
  }
  return folder;
}

void read(const lowbit::Json& config, lowbit::Checkpoint& checkpoint) {
  using namespace lowbit;
  if (is_bnb_config(config)) {
    const BnbSettings settings = read_bnb_settings(config, "config.json");
    if (settings.format == Format::kInt8) {
      read_bnb_int8_weights(settings, "config.json", checkpoint);
    } else {
      read_bnb_weights(settings.format, "config.json", checkpoint);
    }
  } else if (is_compressed_config(config)) {
    read_compressed_weights(read_compressed_settings(config, "config.json"), "config.json", checkpoint);
  } else if (is_lowbit_config(config)) {
    read_lowbit_weights(read_lowbit_settings(config, "config.json"), "config.json", checkpoint);
  } else {
    read_gptq_weights(read_gptq_settings(config, "config.json"), "config.json", checkpoint);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto* cut = static_cast<const uint8_t*>(size > 0 ? std::memchr(data, 0xff, size) : nullptr);
  if (!cut) return 0;
  try {
    const lowbit::Json config = lowbit::parse_json(
        {reinterpret_cast<const char*>(data), static_cast<size_t>(cut - data)}, "config.json");
    if (!config.is_object()) return 0;
    lowbit::Checkpoint checkpoint;
    checkpoint.config = lowbit::Json::Object{{"model_type", "llama"}};
    checkpoint.quantization.emplace();
    checkpoint.files = tensors_of({cut + 1, size - static_cast<size_t>(cut + 1 - data)});
    read(config, checkpoint);
    for (const auto& [name, weight] : checkpoint.weights) {
      const auto* quantized = std::get_if<lowbit::QuantizedTensor>(&weight);
      if (!quantized) continue;
      const Tensor dense = lowbit::dequantized(*quantized);
      if (dense.element_count() != quantized->out_features * quantized->in_features) __builtin_trap();
    }
  } catch (const lowbit::Error&) {
  }
  return 0;
}
