// After saving: is what lies on disk the model that it should be?
#pragma once

#include "lowbit/log.h"
#include "lowbit/quantize.h"
#include "ops/context.h"
#include "quantize/memory_meter.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

struct CheckResult {
  bool passed = true;
  std::string verdict;  // one sentence
  double mean_kl = 0, top1_agreement = 0;
  int64_t tokens = 0;
};

// Most mean KL (nats per token) that a checkpoint of so many bits may have. Far above what sound quantization
// costs (docs/quality.md): it tells a broken file from a coarse one.
double largest_allowed_kl(int bits);

// Reads `result` from disk and compares its logits with those of `source` on the samples (at most 4,096
// tokens): all finite, and the mean KL within the bound for `bits`, the fewest of any module.
CheckResult check_result(const std::filesystem::path& source, const std::filesystem::path& result,
                         const OpContext& ops, const std::vector<std::vector<int32_t>>& samples, int bits,
                         MemoryMeter& meter, const Log& log);

// Its figures, in the words of the result.
void set_check(const CheckResult& check, QuantizeResult& result);

inline constexpr std::string_view kNoHeadToCheck =
    "the result was not checked: the model has no head whose answers could be compared; lowbit eval "
    "embeddings compares it with its source";

}  // namespace lowbit
