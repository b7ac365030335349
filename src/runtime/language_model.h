// The parts of a loaded model that other rooms above runtime/ work with.
#pragma once

#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "lowbit/generate.h"
#include "model/model.h"

#include <optional>

namespace lowbit {

struct LanguageModel::State {
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

  OpContext ops() const { return {threads.get(), &workspace, &kernels}; }
};

}  // namespace lowbit
