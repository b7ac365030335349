#include "runtime/load_quantized.h"

#include "base/fail.h"
#include "ops/encode.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace lowbit {
namespace {

constexpr int64_t kGroupSize = 64;  // of 4 bits: bitsandbytes' default; its configs have no other

// By the module's name, or a part of it that begins and ends at a dot.
bool names(std::string_view key, std::string_view module) {
  for (size_t at = module.find(key); at != module.npos; at = module.find(key, at + 1)) {
    const size_t end = at + key.size();
    if ((at == 0 || module[at - 1] == '.') && (end == module.size() || module[end] == '.')) return true;
  }
  return false;
}

// Insertions, removals and replacements from one to the other.
size_t distance_between(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

void check_names(const std::vector<std::string>& keys, const std::vector<std::string>& modules) {
  for (const std::string& key : keys) {
    if (key.empty() || key.size() > 500)
      fail(ErrorCode::kInvalidArgument,
           "llm_int8_skip_modules has a name of {} characters, expected 1 to 500", key.size());
    if (std::any_of(modules.begin(), modules.end(),
                    [&](const std::string& module) { return names(key, module); }))
      continue;
    std::string nearest;
    size_t least = key.size() + 500;
    for (const std::string& module : modules) {
      for (const std::string& name : {module, module.substr(module.rfind('.') + 1)}) {
        if (const size_t distance = distance_between(key, name); distance < least)
          least = distance, nearest = name;
      }
    }
    fail(ErrorCode::kInvalidArgument,
         "llm_int8_skip_modules names \"{}\", which no module of the model is called; did you mean \"{}\"?",
         key, nearest);
  }
}

Format format_of(const RuntimeOptions& options) {
  if (options.load_in_8bit) return Format::kInt8;
  return options.bnb_4bit_quant_type == "nf4" ? Format::kNf4 : Format::kFp4;
}

// The model's matrices that are to become codes; the log says what is done.
std::vector<Linear*> to_quantize(Model& model, const Checkpoint& checkpoint, const RuntimeOptions& options,
                                 const Log& log) {
  if (checkpoint.quantization) {
    fail(ErrorCode::kInvalidArgument, "{} is quantized already ({}): load it without load_in_{}bit",
         checkpoint.folder.string(), checkpoint.quantization->dialect, options.load_in_8bit ? 8 : 4);
  }
  std::vector<Linear*> linears;
  std::vector<std::string> modules = model.frame_linears();
  for (int64_t layer = 0; layer < model.layer_count(); ++layer) {
    for (Linear& linear : model.block(layer).linears()) {
      linears.push_back(&linear);
      modules.push_back(linear.module);
    }
  }
  const std::vector<std::string>& keys = options.llm_int8_skip_modules;
  check_names(keys, modules);
  const size_t left = std::erase_if(linears, [&](const Linear* linear) {
    return std::any_of(keys.begin(), keys.end(),
                       [&](const std::string& key) { return names(key, linear->module); });
  });
  const Format format = format_of(options);
  log.info(fmt::format("{} matrices rounded to {}, {}{}", linears.size(), format_name(format),
                       format == Format::kInt8
                           ? "rows"
                           : fmt::format("groups of {}{}", kGroupSize,
                                         options.bnb_4bit_use_double_quant ? ", their scales to 8 bits" : ""),
                       left > 0 ? fmt::format("; {} left as they are", left) : ""));
  return linears;
}

}  // namespace

NamedWeights quantized_on_load(Checkpoint& checkpoint, const RuntimeOptions& options, const OpContext& ops,
                               const Log& log) {
  Model model = Model::create(checkpoint.config, checkpoint.weights);
  const Format format = format_of(options);
  NamedWeights quantized;
  for (Linear* linear : to_quantize(model, checkpoint, options, log)) {
    // As the model has it: some files hold it the other way round.
    const Tensor dense = std::get<Tensor>(std::exchange(linear->weight, Tensor()));
    const std::string name = linear->module + ".weight";
    checkpoint.weights.erase(name);
    try {
      Weight weight = encoded(ops, dense,
                              {.format = format,
                               .group_size = kGroupSize,
                               .use_double_quant = options.bnb_4bit_use_double_quant});
      if (format == Format::kInt8) {
        std::get<QuantizedTensor>(weight).activations = ActivationFormat::kInt8Dynamic;
        std::get<QuantizedTensor>(weight).outlier_threshold = options.llm_int8_threshold;
      }
      quantized.emplace(name, std::move(weight));
      checkpoint.files.release(dense.bytes(), dense.byte_count());
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", linear->module, error.what());
    }
  }
  return quantized;
}

GpuEncoding encoding_on_load(Model& model, const Checkpoint& checkpoint, const RuntimeOptions& options,
                             const Log& log) {
  GpuEncoding encoding{.format = format_of(options)};
  if (options.load_in_8bit) encoding.outlier_threshold = options.llm_int8_threshold;
  const int64_t together = options.load_in_8bit ? 8 : kGroupSize;
  for (const Linear* linear : to_quantize(model, checkpoint, options, log)) {
    if (in_features(linear->weight) % together != 0)
      fail(ErrorCode::kUnsupported, "{} has {} inputs: on a GPU load_in_{}bit takes multiples of {}",
           linear->module, in_features(linear->weight), options.load_in_8bit ? 8 : 4, together);
    encoding.indices.emplace(std::get<Tensor>(linear->weight).bytes(), encoding.modules.size());
    encoding.modules.push_back(linear->module);
  }
  return encoding;
}

}  // namespace lowbit
