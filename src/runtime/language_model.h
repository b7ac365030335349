// The parts of a loaded model that other rooms above runtime/ work with.
#pragma once

#include "base/gpu_queue.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/generate.h"
#include "model/model.h"

#include <future>
#include <memory>
#include <optional>

namespace lowbit {

class GpuWarmUp;

struct LanguageModel::State {
  std::unique_ptr<GpuQueue> gpu;  // null: the CPU
  std::shared_ptr<GpuLibraries> libraries;
  std::filesystem::path folder;
  Checkpoint checkpoint;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Workspace> workspace;
  KernelChoice kernels;
  DType cache_dtype = DType::kBF16;
  Model model;
  std::optional<Tokenizer> tokenizer;
  std::string tokenizer_error;  // why there is none
  std::optional<ChatTemplate> chat_template;
  std::string chat_template_error;
  GenerateOptions sampling_defaults;
  std::vector<int32_t> eos_ids;
  uint64_t weight_bytes = 0;           // see MemoryUse
  uint64_t streamed_bytes = 0;         // of weights that do not fit into the GPU's memory
  std::future<void> reading_library;   // that prompts need; the GPU takes as long to begin
  std::shared_ptr<GpuWarmUp> warm_up;  // last: it ends before what it works with

  OpContext ops() const { return {threads.get(), workspace.get(), &kernels, gpu.get(), libraries.get()}; }
};

// kInvalidArgument unless the model writes text; says what an encoder can do.
void require_text_generation(const LanguageModel::State& state);
// kInvalidArgument unless it is an encoder.
void require_encoder(const LanguageModel::State& state);

}  // namespace lowbit
