// Make a model small: read a folder, choose codes (rtn or gptq), write a checkpoint that the ecosystem loads,
// reload it and say what it cost.
#pragma once

#include "lowbit/bytes.h"
#include "lowbit/format.h"
#include "lowbit/log.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lowbit {

struct GptqOptions {
  float damp_percent = 0.05f;  // share of mean(diag(H)) added to the diagonal; in (0, 1)
  bool desc_act = false;       // work through columns by falling diag(H)
  bool static_groups = false;  // group parameters from the original weights, before any update
  bool act_group_aware =
      true;  // order columns inside groups, and groups, by diag(H); g_idx stays sequential.
             // Gafni et al., arXiv 2505.14638. Not with desc_act or group_size -1
  bool true_sequential = true;  // later linears of a layer see the outputs of its already quantized ones
  float mse = 2.4f;             // exponent of the clip search's error; 0: no search, min-max
  bool weighted_mse = true;     // the search weighs a column's error by diag(H); gptq only
  bool updated_groups =
      true;  // group parameters from the updated weights; off: as AutoGPTQ, without the block's own
  int refine_sweeps = 3;  // passes of coordinate descent over codes and scales after the loop; 0: none.
                          // Behdin et al., QuantEase, arXiv 2309.01885
};

struct CalibrationOptions {
  std::filesystem::path data;  // chat JSONL, text JSONL, or a plain text file
  int64_t samples = 128;       // examples, or windows of max_length tokens of a plain text
  int64_t max_length = 1024;   // tokens per sample; longer ones keep their head
  int64_t batch_size = 8;      // samples per forward pass; does not change the codes
  uint64_t seed = 0;           // of the choice of samples when there are more
};

// Of format int8 in dialect compressed-tensors, whose inputs are rounded to int8.
struct InputOptions {
  std::string observer =
      "auto";  // of int8-static, how ranges are chosen: "minmax", "moving" (average of the samples'),
               // "histogram" (least squares, as torch.ao), "percentile", "mse", "entropy" (as TensorRT);
               // "auto": moving or mse for each kind of layer, by the KL of some calibration samples
  float observer_percentile = 99.99f;   // of magnitudes that "percentile" covers; above 50, at most 100
  std::optional<bool> activations_sym;  // of int8-static: no zero point; unset: what observer "auto" finds
                                        // best, with the other observers true
  // "": no; "auto" (searched for each layer), or 0 to 1: how much of the ranges of inputs moves into the
  // weights, as s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). Of linears behind a norm of their own (q, k, v;
  // gate, up) and of down in a gated MLP; o stays as it is. Xiao et al., SmoothQuant, arXiv 2211.10438.
  std::string smooth_alpha;
};

struct QuantizeOptions {
  std::string method = "gptq";  // "gptq" or "rtn"
  std::string format =
      "affine";  // or "nf4", "fp4", "fp8", "fp8_e5m2", "log2"; with method "rtn" "int8" (rows)
  // "gptq" (format affine), "bitsandbytes" (nf4 and fp4 in groups of 64, int8), "compressed-tensors" (int8,
  // affine of 2, 4 or 8 bits, fp8 with a scale per row), "lowbit" (all but affine and int8). "auto": the
  // first of these that can spell the format, group_size, lm_head and activations.
  std::string dialect = "auto";
  float log_base = 2;  // of format log2, see LogOptions; its bits, and all group sizes, are those of `affine`
  std::string activations;  // of int8: "int8-dynamic" (a scale per token), "int8-static" (ranges from
                            // calibration, see `inputs`) or "none" (they stay floats); empty: what dialect
                            // "bitsandbytes" does, otherwise none
  float llm_int8_threshold =
      6;  // of int8 in dialect "bitsandbytes": inputs of this magnitude or more stay floats; 0: none do
  bool bnb_4bit_use_double_quant =
      false;  // with dialect "bitsandbytes": scales are encoded in 8 bits themselves
  // Of nf4 and fp4 in dialect "bitsandbytes", for transformers: "bfloat16", "float16" or "float32" that it
  // computes in, empty: the source's; and what the codes' bytes are called, "uint8" or one of these, which
  // FSDP shards together with dense weights of that type.
  std::string bnb_4bit_compute_dtype, bnb_4bit_quant_storage = "uint8";
  AffineOptions affine;
  InputOptions inputs;
  GptqOptions gptq;
  CalibrationOptions calibration;
  std::vector<std::string> dynamic;  // "REGEX=bits:8,group_size:64" overrides, "-:REGEX" leaves modules
                                     // unquantized; of int8 inputs "REGEX=activations:none"
  bool lm_head = false;              // quantize the head too; not for tied models
  // "", "autogptq": that program's own choices; "bitsandbytes-cpu": how it encodes scales on the CPU
  std::string compat;
  std::string checkpoint_format;  // "gptq" or "gptq_v2"; empty: gptq when symmetric, gptq_v2 otherwise
  std::string model_name_or_path, model_file_base_name = "model";
  std::string max_shard_size = "4GB";
  bool resume = true;      // continue from OUT.partial when model, data and options are the same
  bool check = true;       // reload and compare with the source on held-back samples
  bool overwrite = false;  // replace OUT when it exists
  int threads = 0;
  std::string kernel;
  std::string device =
      "auto";  // "cpu", "cuda", "cuda:N"; "auto": the first GPU that can be used, else the CPU
  Bytes
      max_gpu_memory;  // of a GPU's memory that may be taken; 0: all that is free. Does not change the codes
};

// Of static inputs, over the calibration data.
struct InputReport {
  float scale = 0;
  int zero_point = 0;
  double clipped = 0;         // share of the values that lie outside the range
  double relative_error = 0;  // |x - rounded x|_F / |x|_F
  std::string observer;       // that chose the range, to both sides of 0 alike or not
  bool is_symmetric = true;
};

struct ModuleReport {
  std::string module;
  int bits = 0;
  int64_t group_size = 0;
  std::string method;         // "gptq", "rtn", "none" (left dense)
  std::string note;           // why it is not what was asked for; may be empty
  double relative_error = 0;  // |X dW^T|_F / |X W^T|_F over calibration; of the weights alone for rtn
  int64_t tokens = 0;
  double damp_percent = 0;  // that was needed
  double seconds = 0;
  std::optional<InputReport> input;
  std::optional<double> smooth_alpha;  // with which its inputs were smoothed
};

struct QuantizeResult {
  std::vector<ModuleReport> modules;
  double seconds = 0;
  std::vector<std::pair<std::string, double>>
      seconds_by_phase;  // "load", "forward", "hessians", "codes", ...
  uint64_t peak_rss_bytes = 0, peak_anonymous_bytes = 0, peak_gpu_bytes = 0;
  uint64_t source_bytes = 0, bytes = 0;    // of the safetensors files
  double bits_per_weight = 0;              // of the quantized modules, scales and zero points included
  bool checked = false, passed = true;     // the reload check, and its verdict
  double mean_kl = 0, top1_agreement = 0;  // on the held-back samples
  int64_t check_tokens = 0;
  bool resumed = false;
  std::vector<std::string> warnings;
  std::string report_json;  // all of this and the engine table
};

QuantizeResult quantize(const std::filesystem::path& model, const std::filesystem::path& out,
                        const QuantizeOptions& options, const Log& log = {});

// What quantize would do, without doing it: modules and reasons, bytes by component, peak memory, disk,
// estimated time, whether it can finish. A JSON object; "feasible" is false with "reasons" when it cannot.
std::string plan_json(const std::filesystem::path& model, const std::filesystem::path& out,
                      const QuantizeOptions& options);

}  // namespace lowbit
