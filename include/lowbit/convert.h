// A checkpoint written another way: dense, another GPTQ version, sequential groups, other shards.
#pragma once

#include "lowbit/log.h"

#include <cstdint>
#include <filesystem>
#include <string>

namespace lowbit {

struct ConvertOptions {
  std::string to;  // "bfloat16", "float16", "float32" (dense), "gptq", "gptq_v2"; empty: as it is
  bool sequential_groups =
      false;  // act-order checkpoints: requantize to groups in column order (costs some error)
  std::string max_shard_size;  // "4GB"; empty: one file
  bool overwrite = false;
};

struct ConvertResult {
  std::string from, to;
  uint64_t source_bytes = 0, bytes = 0;
  double largest_error = 0;  // over all weights, |after - before|; 0 when the conversion is exact
  std::string report_json;
};

ConvertResult convert(const std::filesystem::path& model, const std::filesystem::path& out,
                      const ConvertOptions& options, const Log& log = {});

}  // namespace lowbit
