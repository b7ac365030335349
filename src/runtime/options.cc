// The option lists of runtime/, and the checks at its door.
#include "runtime/options.h"

#include "base/fail.h"
#include "base/gpu.h"
#include "ops/kernel_table.h"
#include "tensor/tensor.h"

#include <charconv>
#include <cmath>

namespace lowbit {

Fields option_fields(RuntimeOptions& options) {
  return {
      {"device", &options.device, "cpu, cuda or cuda:N (a GPU); auto: the GPU where one can be used"},
      {"threads", &options.threads, "worker threads; 0: one per processor"},
      {"kernel", &options.kernel,
       "force kernels: \"ref\", \"avx2\", ... or per op \"attention=ref,matmul_affine_decode=avx2\""},
      {"kv_cache_dtype", &options.kv_cache_dtype, "keys and values are kept as bfloat16 or float32"},
      {"map_weights", &options.map_weights,
       "leave weights in the mapped file, which processes share: slower, but no copy in memory"},
      {"load_in_4bit", &options.load_in_4bit,
       "round the matrices of the layers to 4 bits while they are loaded, as bitsandbytes does"},
      {"bnb_4bit_quant_type", &options.bnb_4bit_quant_type,
       "what load_in_4bit rounds to: nf4 or fp4, groups of 64"},
      {"bnb_4bit_use_double_quant", &options.bnb_4bit_use_double_quant,
       "with load_in_4bit: scales are rounded to 8 bits themselves, as in a file of bitsandbytes that has "
       "so"},
      {"bnb_4bit_compute_dtype", &options.bnb_4bit_compute_dtype,
       "with load_in_4bit: bfloat16, inputs of products become that, integers of 16 bits or stay as they "
       "are, whichever is fastest; float32: they stay as they are, on the CPU alone"},
      {"bnb_4bit_quant_storage", &options.bnb_4bit_quant_storage,
       "with load_in_4bit: uint8, which codes are in memory; lowbit quantize can write them as other types"},
      {"load_in_8bit", &options.load_in_8bit,
       "round the matrices of the layers to int8 rows while they are loaded, and their inputs token by "
       "token (on a GPU: of prompts), as LLM.int8() does"},
      {"llm_int8_threshold", &options.llm_int8_threshold,
       "with load_in_8bit: inputs of this magnitude or more stay floats; 0: none do"},
      {"llm_int8_skip_modules", &options.llm_int8_skip_modules,
       "a module that load_in_4bit and load_in_8bit leave as it is, by its name or its last part, as o_proj; "
       "may be given several times"},
      {"max_gpu_memory", &options.max_gpu_memory,
       "take at most so much of the GPU's memory, as 6GB or 800MiB; layers that do not fit are streamed from "
       "this machine's memory; 0: all that is free"},
      {"kv_cache_tokens", &options.kv_cache_tokens,
       "keep room on the GPU for keys and values of so many tokens over all sequences when deciding which "
       "layers fit; 0: 2048, or as many as --batch-size and --context need"}};
}

Fields option_fields(GenerateOptions& options) {
  return {
      {"max_new_tokens", &options.max_new_tokens, "at most this many new tokens"},
      {"temperature", &options.temperature, "0: the most likely token; higher: more random"},
      {"top_k", &options.top_k, "sample among the k most likely tokens; 0: all"},
      {"top_p", &options.top_p,
       "sample among the most likely tokens whose probabilities sum to this, in (0, 1]"},
      {"repetition_penalty", &options.repetition_penalty, "above 1: tokens that occurred become less likely"},
      {"seed", &options.seed, "of the sampler; the same seed gives the same tokens"},
      {"stop", &options.stop, "a text that ends the answer; may be given several times"},
      {"ignore_eos", &options.ignore_eos, "go on after an end-of-sequence token"}};
}

void validate_llm_int8_threshold(float threshold) {
  if (!(threshold >= 0) || !std::isfinite(threshold))
    fail(ErrorCode::kInvalidArgument, "llm_int8_threshold is {}, expected a number, 0 or more", threshold);
}

namespace {

bool computes_in_f32(const RuntimeOptions& options) { return options.bnb_4bit_compute_dtype == "float32"; }

void validate_4bit_types(const RuntimeOptions& options) {
  const std::string& compute = options.bnb_4bit_compute_dtype;
  if (compute == "float16") {
    fail(ErrorCode::kInvalidArgument,
         "bnb_4bit_compute_dtype is \"float16\", whose range the activations of many models leave: expected "
         "\"bfloat16\" or \"float32\"");
  }
  if (compute != "bfloat16" && !computes_in_f32(options)) {
    fail(ErrorCode::kInvalidArgument,
         "bnb_4bit_compute_dtype is \"{}\", expected \"bfloat16\" or \"float32\"", compute);
  }
  if (options.bnb_4bit_quant_storage != "uint8") {
    fail(ErrorCode::kInvalidArgument,
         "bnb_4bit_quant_storage is \"{}\", but codes are \"uint8\" in memory; lowbit quantize --dialect "
         "bitsandbytes writes them under other types",
         options.bnb_4bit_quant_storage);
  }
  if (!computes_in_f32(options)) return;
  if (!options.load_in_4bit)
    fail(ErrorCode::kInvalidArgument, "bnb_4bit_compute_dtype is about load_in_4bit: add load_in_4bit");
  if (!options.kernel.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "kernel and bnb_4bit_compute_dtype \"float32\" both say which kernels run: leave one of them out");
  }
}

}  // namespace

void validate(const RuntimeOptions& options) {
  if (options.threads < 0 || options.threads > 1024) {
    fail(ErrorCode::kInvalidArgument, "threads is {}, expected 0 to 1024", options.threads);
  }
  if (options.kv_cache_tokens < 0 || options.kv_cache_tokens > int64_t{1} << 31) {
    fail(ErrorCode::kInvalidArgument, "kv_cache_tokens is {}, expected 0 to 2147483648",
         options.kv_cache_tokens);
  }
  if (options.bnb_4bit_quant_type != "nf4" && options.bnb_4bit_quant_type != "fp4") {
    fail(ErrorCode::kInvalidArgument, "bnb_4bit_quant_type is \"{}\", expected \"nf4\" or \"fp4\"",
         options.bnb_4bit_quant_type);
  }
  if (options.bnb_4bit_use_double_quant && !options.load_in_4bit)
    fail(ErrorCode::kInvalidArgument, "bnb_4bit_use_double_quant is about load_in_4bit: add load_in_4bit");
  validate_4bit_types(options);
  if (options.load_in_4bit && options.load_in_8bit)
    fail(ErrorCode::kInvalidArgument, "load_in_4bit and load_in_8bit are both set: leave one of them out");
  validate_llm_int8_threshold(options.llm_int8_threshold);
  if (!options.load_in_8bit && options.llm_int8_threshold != RuntimeOptions{}.llm_int8_threshold)
    fail(ErrorCode::kInvalidArgument, "llm_int8_threshold is about load_in_8bit: add load_in_8bit");
  if (!options.load_in_4bit && !options.load_in_8bit && !options.llm_int8_skip_modules.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "llm_int8_skip_modules says what load_in_4bit or load_in_8bit leaves as it is: add one of them");
  }
  if (options.max_gpu_memory.count > 0 && parse_device(options.device) == kHost) {
    fail(ErrorCode::kInvalidArgument, "max_gpu_memory is {}, but device is \"cpu\": leave one of them out",
         options.max_gpu_memory.count);
  }
}

void validate(const GenerateOptions& options) {
  auto refuse = [](const char* name, auto value, const char* expected) {
    fail(ErrorCode::kInvalidArgument, "{} is {}, expected {}", name, value, expected);
  };
  if (options.max_new_tokens < 1 || options.max_new_tokens > int64_t{1} << 31) {
    refuse("max_new_tokens", options.max_new_tokens, "1 to 2147483648");
  }
  if (!(options.temperature >= 0 && options.temperature <= 1000))
    refuse("temperature", options.temperature, "0 to 1000");
  if (options.top_k < 0) refuse("top_k", options.top_k, "0 or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) refuse("top_p", options.top_p, "more than 0, at most 1");
  if (!(options.repetition_penalty > 0 && options.repetition_penalty <= 100)) {
    refuse("repetition_penalty", options.repetition_penalty, "more than 0, at most 100");
  }
  if (options.stop.size() > 64) refuse("the number of stop texts", options.stop.size(), "at most 64");
  for (const std::string& stop : options.stop) {
    if (stop.empty() || stop.size() > 4096)
      refuse("the length of a stop text", stop.size(), "1 to 4096 bytes");
  }
}

int parse_device(std::string_view name) {
  if (name == "auto") return kAnyDevice;
  if (name == "cpu") return kHost;
  if (name == "cuda") return 0;
  int index = -1;
  if (name.starts_with("cuda:")) {
    const char *begin = name.data() + 5, *end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(begin, end, index);
    if (error != std::errc() || rest != end) index = -1;
  }
  if (index < 0) {
    fail(ErrorCode::kInvalidArgument, "device is \"{}\", expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"",
         name);
  }
  return index;
}

std::string device_name(int device) { return device == kHost ? "cpu" : fmt::format("cuda:{}", device); }

int choose_device(std::string_view name, std::string_view cpu_only, const Log& log) {
  const int asked = parse_device(name);
  if (asked >= 0 && !cpu_only.empty()) {
    fail(ErrorCode::kUnsupported, "{} is what only the CPU can do: leave it out, or set device to cpu",
         cpu_only);
  }
  if (asked >= 0) require_gpu(asked);
  if (asked != kAnyDevice) return asked;
  if (!gpu_support().problem.empty()) return kHost;
  if (!cpu_only.empty()) {
    log.info(fmt::format("{} is what only the CPU can do: that is where it runs", cpu_only));
    return kHost;
  }
  for (const Gpu& gpu : gpu_support().gpus) {
    if (gpu.problem.empty()) return gpu.index;
  }
  return kHost;
}

DType parse_cache_dtype(std::string_view name) {
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float32") return DType::kF32;
  fail(ErrorCode::kInvalidArgument, "kv_cache_dtype is \"{}\", expected \"bfloat16\" or \"float32\"", name);
}

std::string cpu_only(const RuntimeOptions& options) {
  if (!options.kernel.empty()) return fmt::format("kernel \"{}\"", options.kernel);
  if (options.kv_cache_dtype != "bfloat16")
    return fmt::format("kv_cache_dtype \"{}\"", options.kv_cache_dtype);
  if (computes_in_f32(options))
    return fmt::format("bnb_4bit_compute_dtype \"{}\"", options.bnb_4bit_compute_dtype);
  return "";
}

KernelChoice kernel_choice(const RuntimeOptions& options) {
  KernelChoice choice = parse_kernel_choice(options.kernel);
  if (!computes_in_f32(options)) return choice;
  // Those that are named after their instructions alone keep inputs as they are.
  const char* const name = isa_available(Isa::kAvx512) ? "avx512"
                           : isa_available(Isa::kAvx2) ? "avx2"
                                                       : "ref";
  for (const char* const op : {"matmul_codebook_decode", "matmul_codebook_prefill"})
    choice.by_op.emplace_back(op, name);
  return choice;
}

KernelChoice parse_kernel_choice(std::string_view text) {
  KernelChoice choice;
  const std::vector<KernelListing> kernels = list_kernels();
  auto check = [&](std::string_view op, std::string_view name) {
    for (const KernelListing& kernel : kernels) {
      if ((op.empty() || kernel.op == op) && kernel.kernel == name) return;
    }
    fail(ErrorCode::kInvalidArgument, "there is no kernel \"{}\"{}{} (see: lowbit doctor)", name,
         op.empty() ? "" : " of ", op);
  };
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    text = comma == text.npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = part.find('=');
    if (equals == part.npos) {
      check({}, part);
      choice.all = part;
    } else {
      check(part.substr(0, equals), part.substr(equals + 1));
      choice.by_op.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    }
  }
  return choice;
}

}  // namespace lowbit
