// The parts of a loaded model that other rooms above runtime/ work with.
#pragma once

#include "base/gpu_queue.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/generate.h"
#include "model/model.h"

#include <optional>

namespace lowbit {

struct LanguageModel::State {
  explicit State(int given_device) : device(given_device), workspace(given_device) {}

  int device;  // as Tensor's
  std::unique_ptr<GpuQueue> gpu;
  std::shared_ptr<GpuLibraries> libraries;
  std::filesystem::path folder;
  Checkpoint checkpoint;
  std::unique_ptr<ThreadPool> threads;
  mutable Workspace workspace;
  KernelChoice kernels;
  DType cache_dtype = DType::kBF16;
  Model model;
  std::optional<Tokenizer> tokenizer;
  std::string tokenizer_error;  // why there is none
  std::optional<ChatTemplate> chat_template;
  std::string chat_template_error;
  GenerateOptions sampling_defaults;
  std::vector<int32_t> eos_ids;

  OpContext ops() const { return {threads.get(), &workspace, &kernels, gpu.get(), libraries.get()}; }
};

}  // namespace lowbit
