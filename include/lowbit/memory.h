// What a model takes in memory, to run and to train: counted from its files and its config.json. Nothing is
// loaded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct MemoryEstimateOptions {
  int64_t context = 0;     // tokens of each sequence, prompt and answer; 0: max_position_embeddings
  int64_t batch_size = 1;  // sequences at once
  std::string kv_cache_dtype = "bfloat16";  // "bfloat16" or "float32"
};

// Generating on the CPU as lowbit does it, in bytes; of an encoder, reading all sequences at once.
struct RunMemory {
  int64_t context = 0, batch_size = 0;
  uint64_t kv_cache_bytes_per_token = 0;
  uint64_t kv_cache_bytes = 0;    // of all tokens of all sequences
  uint64_t activation_bytes = 0;  // the most at a time: one step of the prompt, rotary tables, logits
  uint64_t total_bytes = 0;       // with the weights
};

// Training all parameters with Adam, in bytes; activations left out, which depend on the batch, the length
// and on what is computed twice.
struct TrainMemory {
  std::string_view dtype;  // of weights and gradients: "bfloat16", "float32"
  uint64_t weight_bytes = 0, gradient_bytes = 0;
  uint64_t adam_bytes = 0;       // two moments of 32 bits
  uint64_t adam_8bit_bytes = 0;  // as bitsandbytes keeps them: see kAdamBlock in memory_estimate.cc
  uint64_t total_bytes = 0, total_8bit_bytes = 0;
};

struct MemoryEstimate {
  int64_t parameters = 0;        // see inspect_json
  uint64_t weight_bytes = 0;     // of the tensors that a loaded model keeps, in the data types of the files
  uint64_t buffer_bytes = 0;     // of what no file has, but transformers 5 keeps: rotary frequencies, positions
  uint64_t footprint_bytes = 0;  // both: what get_memory_footprint() of transformers counts
  std::string run_unknown;       // why there is no `run`; empty: there is one
  RunMemory run;
  std::string train_unknown;  // the same for `train`
  std::vector<TrainMemory> train;
  std::vector<std::string> notes;
};

// `path`: a folder or a single .safetensors file. Errors: those of inspect_json, and kInvalidArgument.
MemoryEstimate estimate_memory(const std::filesystem::path& path, const MemoryEstimateOptions& options = {});
std::string to_json(const MemoryEstimate& estimate);

// The object of inspect_json with the estimate as its last member "memory".
std::string inspect_with_memory_json(const std::filesystem::path& path,
                                     const MemoryEstimateOptions& options = {});

}  // namespace lowbit
