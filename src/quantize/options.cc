#include "quantize/options.h"

#include "base/fail.h"
#include "base/fields.h"
#include "checkpoint/bnb.h"
#include "format/affine.h"
#include "format/codebook.h"
#include "format/format_options.h"
#include "quantize/observers.h"
#include "quantize/smooth.h"
#include "runtime/options.h"

#include <cmath>

namespace lowbit {
namespace {

void expect_one_of(std::string_view option, const std::string& value,
                   std::initializer_list<std::string_view> known) {
  std::string list;
  for (std::string_view name : known) {
    if (value == name) return;
    list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", name);
  }
  fail(ErrorCode::kInvalidArgument, "{} is \"{}\", expected one of {}", option, value, list);
}

void expect_at_least(std::string_view option, int64_t value, int64_t least) {
  if (value < least) fail(ErrorCode::kInvalidArgument, "{} is {}, expected {} or more", option, value, least);
}

bool can_spell(std::string_view dialect, Format format) {
  if (dialect == "gptq") return format == Format::kAffine;
  if (dialect == "compressed-tensors")
    return format == Format::kInt8 || format == Format::kAffine || format == Format::kFp8;
  if (dialect == "bitsandbytes")
    return format == Format::kNf4 || format == Format::kFp4 || format == Format::kInt8;
  return format != Format::kAffine && format != Format::kInt8;
}

// What "auto" means for a format that is known.
std::string chosen_dialect(const QuantizeOptions& options, Format format) {
  if (options.dialect != "auto") return options.dialect;
  const int size = options.affine.group_size;
  const auto has_groups_of = [&](int only) { return size == only || size == AffineOptions{}.group_size; };
  switch (format) {
    case Format::kAffine:
      return "gptq";
    case Format::kInt8:
      return options.activations.empty() && options.inputs.smooth_alpha.empty() ? "bitsandbytes"
                                                                                : "compressed-tensors";
    case Format::kNf4:
    case Format::kFp4:
      return has_groups_of(kBnbGroupSize) && !options.lm_head ? "bitsandbytes" : "lowbit";
    case Format::kFp8:
      return has_groups_of(-1) && !options.lm_head ? "compressed-tensors" : "lowbit";
    case Format::kFp8E5m2:
    case Format::kLog2:
      return "lowbit";
  }
  fail(ErrorCode::kInternal, "format {} has no dialect", options.format);
}

void validate_inputs(const QuantizeOptions& options) {
  const InputOptions &inputs = options.inputs, defaults;
  const bool is_static = options.activations == "int8-static";
  if (inputs.observer != kAutoObserver && !find_observer(inputs.observer)) {
    fail(ErrorCode::kInvalidArgument, "observer is \"{}\", expected one of {}", inputs.observer,
         observer_names());
  }
  const float percentile = inputs.observer_percentile;
  if (!(percentile > 50 && percentile <= 100)) {
    fail(ErrorCode::kInvalidArgument, "observer_percentile is {}, expected more than 50, at most 100",
         percentile);
  }
  if (percentile != defaults.observer_percentile && inputs.observer != "percentile") {
    fail(ErrorCode::kInvalidArgument, "observer_percentile is about observer percentile, not about {}",
         inputs.observer);
  }
  if (!is_static && (inputs.observer != defaults.observer || inputs.activations_sym)) {
    fail(ErrorCode::kInvalidArgument,
         "observer and activations_sym are about activations int8-static, but activations is \"{}\"",
         options.activations);
  }
  if (inputs.smooth_alpha.empty()) return;
  parse_smooth_alpha(inputs.smooth_alpha);
  if (options.dialect != "compressed-tensors" || !(is_static || options.activations == "int8-dynamic")) {
    fail(ErrorCode::kInvalidArgument,
         "smooth_alpha goes with dialect compressed-tensors and activations int8-static or int8-dynamic, not "
         "with {} and \"{}\"",
         options.dialect, options.activations);
  }
}

void validate_4bit_types(const QuantizeOptions& options, bool writes_4bit) {
  const QuantizeOptions usual;
  for (const auto& [name, value, usual_value] :
       {std::tuple{"bnb_4bit_compute_dtype", options.bnb_4bit_compute_dtype, usual.bnb_4bit_compute_dtype},
        std::tuple{"bnb_4bit_quant_storage", options.bnb_4bit_quant_storage, usual.bnb_4bit_quant_storage}}) {
    if (value == usual_value) continue;
    if (!find_torch_float(value)) {
      fail(ErrorCode::kInvalidArgument, "{} is \"{}\", expected {}bfloat16, float16 or float32", name, value,
           usual_value.empty() ? "" : usual_value + ", ");
    }
    if (!writes_4bit) {
      fail(ErrorCode::kInvalidArgument, "{} is about nf4 and fp4 in dialect bitsandbytes, not about {} in {}",
           name, options.format, options.dialect);
    }
  }
}

void validate_int8(const QuantizeOptions& options, Format format) {
  expect_one_of("activations", options.activations, {"", "none", "int8-dynamic", "int8-static"});
  const bool is_int8 = format == Format::kInt8, is_llm_int8 = is_int8 && options.dialect == "bitsandbytes";
  if (is_int8 && options.method != "rtn")
    fail(ErrorCode::kInvalidArgument, "format int8 is written with method rtn, not with {}", options.method);
  if (is_int8 && options.affine.group_size != AffineOptions{}.group_size && options.affine.group_size != -1) {
    fail(ErrorCode::kInvalidArgument, "group_size is {}, but format int8 always has a scale per row: -1",
         options.affine.group_size);
  }
  if (options.activations.starts_with("int8") && !is_int8) {
    fail(ErrorCode::kInvalidArgument, "activations {} go with format int8, not with {}", options.activations,
         options.format);
  }
  if (options.activations == "int8-static" && is_llm_int8) {
    fail(ErrorCode::kInvalidArgument,
         "dialect bitsandbytes cannot spell activations int8-static: choose dialect compressed-tensors");
  }
  validate_inputs(options);
  if (options.activations == "none" && is_llm_int8) {
    fail(ErrorCode::kInvalidArgument,
         "dialect bitsandbytes cannot spell activations none, since it rounds the inputs of int8 weights: "
         "choose int8-dynamic, or dialect compressed-tensors");
  }
  validate_llm_int8_threshold(options.llm_int8_threshold);
  if (!is_llm_int8 && options.llm_int8_threshold != QuantizeOptions{}.llm_int8_threshold) {
    fail(ErrorCode::kInvalidArgument,
         "llm_int8_threshold is about format int8 in dialect bitsandbytes, not about {} in {}",
         options.format, options.dialect);
  }
}

void validate_format(QuantizeOptions options) {
  expect_one_of("format", options.format, {"affine", "nf4", "fp4", "fp8", "fp8_e5m2", "log2", "int8"});
  expect_one_of("dialect", options.dialect, {"auto", "gptq", "bitsandbytes", "compressed-tensors", "lowbit"});
  const Format format = *find_format(options.format);
  options.dialect = chosen_dialect(options, format);
  if (!can_spell(options.dialect, format)) {
    fail(ErrorCode::kInvalidArgument,
         "dialect {} cannot spell format {}: affine goes with gptq or compressed-tensors, nf4 and fp4 with "
         "bitsandbytes or lowbit, fp8 with compressed-tensors or lowbit, fp8_e5m2 and log2 with lowbit, int8 "
         "with bitsandbytes or compressed-tensors",
         options.dialect, options.format);
  }
  validate(format, options.affine, options.log_base);
  validate_int8(options, format);
  const bool is_bnb = options.dialect == "bitsandbytes", is_gptq = options.dialect == "gptq";
  if (const int size = options.affine.group_size;
      is_bnb && format != Format::kInt8 && size != kBnbGroupSize && size != AffineOptions{}.group_size) {
    fail(ErrorCode::kInvalidArgument,
         "group_size is {}, but dialect bitsandbytes always has {}; dialect lowbit takes any", size,
         kBnbGroupSize);
  }
  if ((!is_bnb || format == Format::kInt8) && options.bnb_4bit_use_double_quant) {
    fail(ErrorCode::kInvalidArgument,
         "bnb_4bit_use_double_quant is about nf4 and fp4 in dialect bitsandbytes, not about {} in {}",
         options.format, options.dialect);
  }
  validate_4bit_types(options, is_bnb && format != Format::kInt8);
  const bool is_compressed = options.dialect == "compressed-tensors",
             has_dense_head = is_bnb || is_compressed;
  if (is_compressed && format == Format::kAffine && options.affine.bits == 3) {
    fail(
        ErrorCode::kInvalidArgument,
        "bits is 3, but dialect compressed-tensors takes 2, 4 and 8: writers have packed 3 bits in two ways");
  }
  if (const int size = options.affine.group_size;
      is_compressed && format == Format::kFp8 && size != -1 && size != AffineOptions{}.group_size) {
    fail(ErrorCode::kInvalidArgument,
         "group_size is {}, but fp8 in dialect compressed-tensors always has a scale per row: -1; dialect "
         "lowbit takes any",
         size);
  }
  if (has_dense_head && options.lm_head) {
    fail(ErrorCode::kInvalidArgument,
         "dialect {} is written with a dense head: leave lm_head out, or choose dialect lowbit",
         options.dialect);
  }
  if (is_rounded(options) && !options.calibration.data.empty() && !observes_inputs(options)) {
    fail(ErrorCode::kInvalidArgument,
         "format {} with method rtn and dialect {} is rounded without data: leave calibration out",
         options.format, options.dialect);
  }
  if (!is_gptq && options.gptq.desc_act && !options.gptq.static_groups) {
    fail(ErrorCode::kInvalidArgument,
         "dialect {} cannot store the order of columns that desc_act makes: add static_groups, or leave it "
         "out (act_group_aware does most of it)",
         options.dialect);
  }
  const bool is_bnb_compat = options.compat == "bitsandbytes-cpu";
  if (is_bnb_compat && !options.bnb_4bit_use_double_quant) {
    fail(
        ErrorCode::kInvalidArgument,
        "compat bitsandbytes-cpu is about scales that are encoded themselves: add bnb_4bit_use_double_quant");
  }
  if (!is_gptq && !(options.checkpoint_format.empty() && (options.compat.empty() || is_bnb_compat))) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint_format and compat autogptq are about dialect gptq, but dialect is {}", options.dialect);
  }
}

}  // namespace

Fields option_fields(GptqOptions& options) {
  return {{"damp_percent", &options.damp_percent,
           "share of the Hessian's mean diagonal added to it, between 0 and 1"},
          {"desc_act", &options.desc_act,
           "work through columns by falling activation size (groups follow that order "
           "unless static_groups)"},
          {"static_groups", &options.static_groups,
           "choose group parameters from the original weights, before any update"},
          {"act_group_aware", &options.act_group_aware,
           "order columns inside groups, and groups, by activation size; the "
           "file keeps its column order (without effect with desc_act)"},
          {"true_sequential", &options.true_sequential,
           "later linears of a layer see its already quantized ones"},
          {"mse", &options.mse, "exponent of the clip search's error, 1 to 4; 0: no search, plain range"},
          {"weighted_mse", &options.weighted_mse,
           "the clip search weighs the error of a column by the mean square of its input"},
          {"updated_groups", &options.updated_groups,
           "choose group parameters from the updated weights; off: without the "
           "updates of the group's own block, as AutoGPTQ"},
          {"refine_sweeps", &options.refine_sweeps,
           "passes of coordinate descent over codes and scales after the loop; 0: none"}};
}

Fields option_fields(InputOptions& options) {
  return {
      {"observer", &options.observer,
       "of int8-static, how ranges are chosen from the calibration data: minmax, moving (average of the "
       "samples'), histogram (least squares, as torch.ao), percentile, mse or entropy (as TensorRT); auto: "
       "moving or mse for each kind of layer, whichever costs the model less on some of the samples"},
      {"observer_percentile", &options.observer_percentile,
       "of magnitudes that observer percentile covers, above 50, at most 100"},
      {"activations_sym", &options.activations_sym,
       "of int8-static: ranges reach as far on both sides of 0; off: inputs have a zero point (default: what "
       "observer auto finds better, on with the others)"},
      {"smooth_alpha", &options.smooth_alpha,
       "SmoothQuant: how much of the inputs' ranges moves into the weights, 0 to 1, or auto (searched for "
       "each layer); of linears behind a norm and of down in a gated MLP; empty: no"}};
}

Fields option_fields(CalibrationOptions& options) {
  return {
      {"samples", &options.samples, "calibration examples, or windows of max_length tokens of a plain text"},
      {"max_length", &options.max_length, "tokens per sample; longer ones keep their head"},
      {"batch_size", &options.batch_size,
       "samples per forward pass; costs memory, does not change the codes"},
      {"seed", &options.seed, "of the choice of samples when the data hold more"}};
}

Fields option_fields(QuantizeOptions& options) {
  return {
      {"method", &options.method, "how codes are chosen: gptq (needs calibration) or rtn (round to nearest)"},
      {"format", &options.format,
       "what codes mean: affine, nf4, fp4, fp8 (E4M3), fp8_e5m2 or log2 (powers of log_base); with method "
       "rtn "
       "int8 (a scale per row)"},
      {"dialect", &options.dialect,
       "how the checkpoint spells them: gptq (affine), bitsandbytes (nf4, fp4, int8), compressed-tensors "
       "(int8, affine, fp8) or lowbit (all but affine and int8); auto: the first that can"},
      {"log_base", &options.log_base,
       "of format log2: neighbouring values differ by this factor; the error is least near 2 with 3 bits, "
       "1.41 with 4, 1.22 with 5, 1.11 with 6, 1.07 with 7, 1.04 with 8"},
      {"activations", &options.activations,
       "of format int8: int8-dynamic (inputs are rounded too, a scale per token), int8-static (ranges from "
       "calibration) or none; empty: int8-dynamic with dialect bitsandbytes, which knows no other"},
      {"llm_int8_threshold", &options.llm_int8_threshold,
       "of int8 in dialect bitsandbytes: inputs of this magnitude or more stay floats; 0: none do"},
      {"bnb_4bit_use_double_quant", &options.bnb_4bit_use_double_quant,
       "of dialect bitsandbytes: encode scales in 8 bits, 4.13 bits per weight instead of 4.5"},
      {"bnb_4bit_compute_dtype", &options.bnb_4bit_compute_dtype,
       "of nf4 and fp4 in dialect bitsandbytes: what transformers shall compute in, bfloat16, float16 or "
       "float32; empty: the source's type"},
      {"bnb_4bit_quant_storage", &options.bnb_4bit_quant_storage,
       "of nf4 and fp4 in dialect bitsandbytes: what the codes' bytes are called, uint8, bfloat16, float16 "
       "or float32 (FSDP shards tensors of one type together)"},
      {"dynamic", &options.dynamic,
       "\"REGEX=bits:8,group_size:64\" overrides options of matching modules, \"-:REGEX\" "
       "leaves them unquantized, \"REGEX=activations:none\" leaves inputs of int8 weights as they are; may "
       "be repeated"},
      {"lm_head", &options.lm_head, "quantize the head too; not for models that share it with the embedding"},
      {"compat", &options.compat,
       "autogptq: that program's own choices, to the code; bitsandbytes-cpu: with bnb_4bit_use_double_quant, "
       "scales are encoded as bitsandbytes does it on the CPU"},
      {"checkpoint_format", &options.checkpoint_format,
       "gptq (version 1) or gptq_v2; empty: gptq when symmetric"},
      {"model_name_or_path", &options.model_name_or_path, "written to the config; empty: null"},
      {"model_file_base_name", &options.model_file_base_name,
       "name of the safetensors files without their ending"},
      {"max_shard_size", &options.max_shard_size, "largest safetensors file, such as 4GB"},
      {"resume", &options.resume, "continue from OUT.partial when model, data and options are the same"},
      {"check", &options.check, "reload the result and compare it with the source on held-back samples"},
      {"overwrite", &options.overwrite, "replace OUT when it exists"},
      {"threads", &options.threads, "worker threads; 0: one per processor"},
      {"kernel", &options.kernel,
       "force kernels: ref, avx2, ..., or per op matmul_affine=avx2,attention=ref"},
      {"device", &options.device,
       "auto (a GPU where there is one), cpu, cuda or cuda:N; rtn chooses its codes on the CPU"},
      {"max_gpu_memory", &options.max_gpu_memory,
       "of a GPU's memory that may be taken, such as 6GB; what does not fit stays in this machine's "
       "memory; 0: all that is free"}};
}

void validate(const QuantizeOptions& options) {
  expect_one_of("method", options.method, {"gptq", "rtn"});
  validate_format(options);
  expect_one_of("compat", options.compat, {"", "autogptq", "bitsandbytes-cpu"});
  expect_one_of("checkpoint_format", options.checkpoint_format, {"", "gptq", "gptq_v2"});
  if (options.compat == "autogptq" && options.method != "gptq") {
    fail(ErrorCode::kInvalidArgument, "compat {} is about method gptq, but method is {}", options.compat,
         options.method);
  }
  const GptqOptions& gptq = options.gptq;
  if (!(gptq.damp_percent > 0 && gptq.damp_percent < 1)) {
    fail(ErrorCode::kInvalidArgument, "damp_percent is {}, expected a number between 0 and 1",
         gptq.damp_percent);
  }
  if (!(gptq.mse == 0 || (gptq.mse >= 1 && gptq.mse <= 4))) {
    fail(ErrorCode::kInvalidArgument, "mse is {}, expected 0 (no clip search) or an exponent from 1 to 4",
         gptq.mse);
  }
  expect_at_least("samples", options.calibration.samples, 1);
  expect_at_least("max_length", options.calibration.max_length, 2);
  expect_at_least("batch_size", options.calibration.batch_size, 1);
  if (options.threads < 0 || options.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "threads is {}, expected 0 to 1024", options.threads);
  }
  parse_device(options.device);
  const std::string& name = options.model_file_base_name;
  if (name.empty() || name.size() > 128 || name.find_first_of("/\\") != std::string::npos ||
      name.front() == '.') {
    fail(ErrorCode::kInvalidArgument,
         "model_file_base_name is \"{}\", expected a file name without folder and ending", name);
  }
  if (!options.max_shard_size.empty()) parse_bytes(options.max_shard_size);
}

std::string cpu_only_option(const QuantizeOptions& options) {
  if (options.format != "affine") return fmt::format("format \"{}\"", options.format);
  if (!options.kernel.empty()) return fmt::format("kernel \"{}\"", options.kernel);
  if (!options.compat.empty()) return fmt::format("compat \"{}\"", options.compat);
  return "";
}

void require_calibration(const QuantizeOptions& options) {
  if (options.method == "gptq" && options.calibration.data.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "method gptq needs calibration data: give --calibration FILE (chat JSONL or plain text, best the "
         "model's own "
         "task), or choose --method rtn, which needs none and costs more quality");
  }
  if (observes_inputs(options) && options.calibration.data.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "{} needs calibration data, from which the ranges of inputs are taken: give --calibration FILE, or "
         "choose --activations int8-dynamic without smooth_alpha",
         options.activations == "int8-static" ? "activations int8-static" : "smooth_alpha");
  }
}

bool observes_inputs(const QuantizeOptions& options) {
  return options.activations == "int8-static" || !options.inputs.smooth_alpha.empty();
}

DType bnb_quant_storage(const QuantizeOptions& options) {
  return find_torch_float(options.bnb_4bit_quant_storage).value_or(DType::kU8);
}

std::optional<NestedRounding> nested_rounding(const QuantizeOptions& options) {
  if (!options.bnb_4bit_use_double_quant) return std::nullopt;
  return options.compat == "bitsandbytes-cpu" ? NestedRounding::kCpuTable : NestedRounding::kNearest;
}

ActivationFormat input_format(const QuantizeOptions& options) {
  for (const auto format :
       {ActivationFormat::kNone, ActivationFormat::kInt8Dynamic, ActivationFormat::kInt8Static}) {
    if (activation_name(format) == options.activations) return format;
  }
  fail(ErrorCode::kInternal, "activations {} are not known", options.activations);
}

bool is_rounded(const QuantizeOptions& options) {
  return options.method == "rtn" && (options.format == "int8" || options.dialect == "bitsandbytes");
}

QuantizeOptions settled(const QuantizeOptions& options) {
  QuantizeOptions result = options;
  const Format format = *find_format(options.format);
  result.dialect = chosen_dialect(options, format);
  if (options.compat == "autogptq") {
    if (options.gptq.damp_percent == GptqOptions{}.damp_percent) result.gptq.damp_percent = 0.01f;
    result.gptq.mse = 0;
    result.gptq.act_group_aware = false;
    result.gptq.updated_groups = false;
    result.gptq.refine_sweeps = 0;
  }
  if (result.activations.empty())
    result.activations =
        options.format == "int8" && result.dialect == "bitsandbytes" ? "int8-dynamic" : "none";
  if (result.activations == "int8-static" && result.inputs.observer != kAutoObserver)
    result.inputs.activations_sym = result.inputs.activations_sym.value_or(true);
  if (result.gptq.desc_act) result.gptq.act_group_aware = false;
  if (const std::optional<int> bits = bits_of(format)) result.affine.bits = *bits;
  if (result.dialect == "bitsandbytes") result.affine.group_size = kBnbGroupSize;
  if (format == Format::kInt8 || (format == Format::kFp8 && result.dialect == "compressed-tensors"))
    result.affine.group_size = -1;
  if (result.dialect == "gptq" && result.checkpoint_format.empty())
    result.checkpoint_format = result.affine.sym ? "gptq" : "gptq_v2";
  return result;
}

Json options_json(const QuantizeOptions& options) {
  QuantizeOptions copy = options;
  Json json = fields_to_json(option_fields(copy));
  json.set("affine", fields_to_json(option_fields(copy.affine)));
  json.set("inputs", fields_to_json(option_fields(copy.inputs)));
  json.set("gptq", fields_to_json(option_fields(copy.gptq)));
  Json calibration = fields_to_json(option_fields(copy.calibration));
  calibration.set("data", options.calibration.data.string());
  json.set("calibration", calibration);
  return json;
}

}  // namespace lowbit
