// Runs an encoder over many inputs of different lengths.
#pragma once

#include "lowbit/log.h"
#include "runtime/language_model.h"

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace lowbit {

// A text, or two that belong together.
struct EncoderText {
  std::string_view text;
  std::optional<std::string_view> second = {};
};

struct EncoderLimits {
  int64_t max_length = 0;  // 0: max_position_embeddings
  bool truncate = false;
};

struct EncoderInputs {
  std::vector<EncoderInput> inputs;
  int64_t tokens = 0, truncated = 0;
};

// kInvalidArgument: max_length above the model's positions; texts that are longer and may not be cut (says
// how many, the first one and its length).
EncoderInputs encode_inputs(const LanguageModel::State& state, const Tokenizer& tokenizer,
                            std::span<const EncoderText> texts, const EncoderLimits& limits);

// Calls `visit` with each input's last hidden states [its ids, hidden_size], where the operators compute.
// Inputs run by falling length, batch_size at a time, as ragged rows; so neighbours differ little, and the
// batch that needs the most memory comes first. The numbers of one do not depend on the others.
void run_encoder(const LanguageModel::State& state, std::span<const EncoderInput> inputs, int64_t batch_size,
                 std::string_view phase, const Log& log,
                 const std::function<void(size_t index, const float* hidden)>& visit);

}  // namespace lowbit
