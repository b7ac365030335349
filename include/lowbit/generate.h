// Load a model and let it write. start here: LanguageModel::load(folder, {}), then generate().
#pragma once

#include "lowbit/bytes.h"
#include "lowbit/chat.h"
#include "lowbit/log.h"
#include "lowbit/tokenizer.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lowbit {

struct RuntimeOptions {
  std::string device = "auto";  // "cpu", "cuda" or "cuda:N" (a GPU); "auto": the GPU where one can be used
  int threads = 0;              // worker threads; 0: one per processor that this process may use
  std::string kernel;           // force kernels: "ref", "avx2", or per op "matmul_affine=avx2,attention=ref"
  std::string kv_cache_dtype = "bfloat16";  // "bfloat16" or "float32"
  bool map_weights =
      false;  // leave weights in the mapped file, which processes share, instead of copying them
  bool load_in_4bit = false;                // round the layers' matrices to 4 bits while they are loaded
  std::string bnb_4bit_quant_type = "nf4";  // "nf4" or "fp4", in groups of 64
  bool bnb_4bit_use_double_quant = false;   // scales are rounded to 8 bits themselves
  // What the products of load_in_4bit's matrices make of their inputs. "bfloat16": BF16 (on a GPU), integers
  // of 16 bits or nothing, as is fastest; "float32": nothing, on the CPU alone.
  std::string bnb_4bit_compute_dtype = "bfloat16";
  std::string bnb_4bit_quant_storage = "uint8";  // in memory codes are that; QuantizeOptions has more
  bool load_in_8bit = false;     // the same to int8 rows, as LLM.int8(): inputs are rounded too, per token
  float llm_int8_threshold = 6;  // but for inputs of this magnitude or more; 0: all are
  std::vector<std::string>
      llm_int8_skip_modules;    // left as they are: whole names, or their last parts ("o_proj")
  Bytes max_gpu_memory;         // of a GPU's memory that this model may take, all in all; 0: all that is free
  int64_t kv_cache_tokens = 0;  // on a GPU: room that is kept for keys and values, in tokens over all
                                // sequences, when it is decided which layers fit; 0: 2,048
};

struct GenerateOptions {
  int64_t max_new_tokens = 256;  // at most this many tokens per prompt; 1 or more
  float temperature = 0;         // 0: greedy, the most likely token; otherwise logits are divided by it
  int64_t top_k = 0;             // > 0: sample among the k most likely tokens
  float top_p = 1;               // sample among the smallest set of tokens whose probabilities sum to top_p
  float repetition_penalty =
      1;              // > 1: logits of tokens that occurred are divided (multiplied when negative) by it
  uint64_t seed = 0;  // of the sampler; the same seed gives the same tokens
  std::vector<std::string> stop;  // texts that end an answer; not part of it
  bool ignore_eos = false;        // go on after an end-of-sequence token
};

struct GenerateResult {
  std::vector<int32_t> token_ids;  // new tokens, the ending eos left out
  std::string text;                // of token_ids, special tokens left out, cut before a stop text
  int64_t prompt_tokens = 0;
  std::string finish_reason;  // "eos", "stop", "length", "context", "interrupted"
};

struct GenerateSpeed {
  double prefill_seconds = 0, decode_seconds = 0;  // to the first tokens, and from there to the last one
  int64_t prefill_tokens = 0, decode_tokens = 0;   // over all prompts of the call
};

// What a model takes. The figures of a GPU are the most at a time since it was loaded; on the CPU they are 0.
struct MemoryUse {
  uint64_t weight_bytes = 0;  // on the CPU: of all tensors, copied or in mapped files; 0 on a GPU
  uint64_t gpu_weight_bytes = 0, gpu_kv_cache_bytes = 0, gpu_workspace_bytes = 0;
  uint64_t gpu_peak_bytes = 0;  // of all of them together
  uint64_t streamed_bytes = 0;  // weights that stay in this machine's memory because they do not fit
  uint64_t peak_rss_bytes = 0;  // of this process in this machine's memory, mapped files included
};
std::string to_json(const MemoryUse& use);  // an object of the fields above; those of a GPU only with one

// Called for each new piece of text of prompt `index`, as it is certain (never half a character). False stops
// that one.
using StreamSink = std::function<bool(size_t index, std::string_view text)>;

class LanguageModel {
 public:
  // Reads, checks and maps a model folder of any known dialect; weights are not copied. Errors: see Error.
  static LanguageModel load(const std::filesystem::path& folder, const RuntimeOptions& options = {},
                            const Log& log = {});
  ~LanguageModel();
  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;

  const Tokenizer& tokenizer() const;  // kNotFound when the folder has none
  // kNotFound when the model has none, kInvalidArgument: an encoder.
  const ChatTemplate& chat_template() const;
  GenerateOptions sampling_defaults() const;  // of generation_config.json
  int64_t context_length() const;             // max_position_embeddings
  int64_t vocab_size() const;
  // What it is for, as transformers' pipelines are called: "text-generation"; of encoders "fill-mask",
  // "text-classification" or, without a head, "feature-extraction".
  std::string task() const;
  std::string device() const;  // where it runs: "cpu" or "cuda:0"
  MemoryUse memory() const;

  // Continues each prompt (token ids). Prompts of different lengths run as one ragged batch and give the
  // tokens that each would give alone (when sampling: with the random stream of its place in the call).
  // kInvalidArgument: an encoder, an empty prompt, ids out of range, a prompt longer than the context,
  // options out of range.
  std::vector<GenerateResult> generate(const std::vector<std::vector<int32_t>>& prompts,
                                       const GenerateOptions& options, const StreamSink& stream = {},
                                       GenerateSpeed* speed = nullptr) const;

  struct State;  // internal: runtime/language_model.h
  const State& state() const { return *state_; }

 private:
  LanguageModel() = default;
  std::unique_ptr<State> state_;
};

}  // namespace lowbit
