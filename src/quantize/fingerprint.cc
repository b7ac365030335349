#include "quantize/fingerprint.h"

#include "base/cpu.h"
#include "base/fail.h"
#include "base/files.h"
#include "base/gpu.h"
#include "lowbit/version.h"
#include "quantize/options.h"
#include "tensor/tensor.h"

#include <algorithm>
#include <cstring>

namespace lowbit {
namespace {

namespace fs = std::filesystem;

// Size, the first 64 KiB (the header), and 64 bytes of every MiB: reading all of a large model would cost
// minutes.
std::string file_hash(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  Hash hash;
  hash.add_number(bytes.size());
  hash.add(bytes.data(), std::min<size_t>(bytes.size(), 1 << 16));
  for (size_t place = 1 << 20; place < bytes.size(); place += 1 << 20) {
    hash.add(bytes.data() + place, std::min<size_t>(64, bytes.size() - place));
  }
  return hash.text();
}

std::string kernel_set(const QuantizeOptions& options, int gpu) {
  if (gpu != kHost) return gpu_support().gpus[static_cast<size_t>(gpu)].name;
  const CpuFeatures& cpu = cpu_features();
  return fmt::format("{}{}{}{}{}{} {}", cpu.avx2 ? "avx2 " : "", cpu.avx512 ? "avx512 " : "",
                     cpu.avx512_vnni ? "vnni " : "", cpu.avx512_bf16 ? "bf16 " : "",
                     cpu.amx_bf16 ? "amx_bf16 " : "", cpu.amx_int8 ? "amx_int8" : "", options.kernel);
}

}  // namespace

void Hash::add(const void* data, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) value_ = (value_ ^ bytes[i]) * 1099511628211u;
}

std::string Hash::text() const { return fmt::format("{:016x}", value_); }

Json run_fingerprint(const fs::path& model, const QuantizeOptions& options, int gpu,
                     const std::string& data_hash) {
  Json result = Json::object();
  result.set("lowbit", version());
  result.set("kernels", kernel_set(options, gpu));
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(model)) {
    if (entry.path().extension() == ".safetensors" || entry.path().filename() == "config.json")
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) result.set("model." + file.filename().string(), file_hash(file));
  result.set("calibration tokens", data_hash);
  QuantizeOptions relevant = options;
  relevant.kernel.clear();
  const Json json = options_json(relevant);
  for (const auto& [key, value] : json.as_object()) {
    // These change no code, or only the files that are written at the end.
    static constexpr std::string_view kOthers[] = {"threads",
                                                   "resume",
                                                   "check",
                                                   "overwrite",
                                                   "kernel",
                                                   "device",
                                                   "max_gpu_memory",
                                                   "model_name_or_path",
                                                   "model_file_base_name",
                                                   "max_shard_size",
                                                   "calibration"};
    if (std::find(std::begin(kOthers), std::end(kOthers), key) == std::end(kOthers))
      result.set("options." + key, value.dump());
  }
  return result;
}

std::string first_difference(const Json& before, const Json& now) {
  for (const auto& [key, value] : now.as_object()) {
    const Json* other = before.find(key);
    if (!other || !(*other == value)) return key;
  }
  for (const auto& [key, value] : before.as_object()) {
    if (!now.find(key)) return key;
  }
  return "";
}

}  // namespace lowbit
