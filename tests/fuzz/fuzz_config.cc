// Any text as a config.json: its quantization_config (or the whole object) is read and asked for some
// modules, and a small model of fixed tensors is decoded by it.
#include "base/json.h"
#include "checkpoint/gptq_read.h"
#include "checkpoint/gptq_settings.h"
#include "lowbit/error.h"

#include <string_view>

namespace {

lowbit::TensorFolder small_model() {
  using lowbit::DType;
  lowbit::TensorFolder folder;
  const std::string module = "model.layers.0.self_attn.q_proj";
  folder.tensors[module + ".qweight"] = lowbit::Tensor::zeros(DType::kI32, {8, 32});
  folder.tensors[module + ".qzeros"] = lowbit::Tensor::zeros(DType::kI32, {2, 4});
  folder.tensors[module + ".scales"] = lowbit::Tensor::zeros(DType::kF16, {2, 32});
  folder.tensors[module + ".g_idx"] = lowbit::Tensor::zeros(DType::kI32, {64});
  folder.tensors[module + ".bias"] = lowbit::Tensor::zeros(DType::kF16, {32});
  return folder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const lowbit::Json config =
        lowbit::parse_json({reinterpret_cast<const char*>(data), size}, "config.json");
    const lowbit::Json* inner = config.find("quantization_config");
    const lowbit::GptqSettings settings = lowbit::read_gptq_settings(inner ? *inner : config, "config.json");
    for (const char* module : {"lm_head", "model.layers.27.mlp.gate_proj", ""})
      settings.module_options(module, "config.json");
    lowbit::Checkpoint checkpoint;
    checkpoint.config = config;
    checkpoint.files = small_model();
    checkpoint.quantization.emplace();
    lowbit::read_gptq_weights(settings, "config.json", checkpoint);
    for (const auto& [name, weight] : checkpoint.weights) {
      if (const auto* quantized = std::get_if<lowbit::QuantizedTensor>(&weight))
        lowbit::dequantized(*quantized);
    }
  } catch (const lowbit::Error&) {
  }
  return 0;
}
