// What a run depends on: kept beside its finished layers, so that a resume never mixes two runs.
#pragma once

#include "base/json.h"
#include "lowbit/quantize.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace lowbit {

// FNV-1a over 64 bits: tells runs apart, protects against nothing.
class Hash {
 public:
  void add(const void* data, size_t size);
  void add_number(uint64_t number) { add(&number, sizeof number); }
  std::string text() const;  // 16 hexadecimal digits

 private:
  uint64_t value_ = 14695981039346656037u;
};

// An object with one entry per thing that the codes depend on: version, kernels, config, each safetensors
// file (size, header and samples of its bytes), the data, each option. Threads and batch size are not among
// them.
// gpu: the index of the GPU that chooses the codes, or kHost.
Json run_fingerprint(const std::filesystem::path& model, const QuantizeOptions& options, int gpu,
                     const std::string& data_hash);

// "options.bits" of the first entry that differs, empty when equal.
std::string first_difference(const Json& before, const Json& now);

}  // namespace lowbit
