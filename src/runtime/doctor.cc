#include "lowbit/doctor.h"

#include "base/cpu.h"
#include "base/gpu.h"
#include "base/gpu_queue.h"
#include "base/json.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "ops/cuda/kernel_list.h"
#include "ops/cuda/libraries.h"
#include "ops/cuda/limits.h"
#include "ops/kernel_table.h"
#include "ops/machine_limits.h"
#include "runtime/forward.h"

#include <algorithm>
#include <map>
#include <memory>

namespace lowbit {
namespace {

Json instruction_sets() {
  const CpuFeatures& cpu = cpu_features();
  Json list = Json::array();
  const std::pair<const char*, bool> rows[] = {
      {"AVX2", cpu.avx2},
      {"AVX-512", cpu.avx512},
      {"AVX-512 VNNI", cpu.avx512_vnni},
      {"AVX-512 BF16", cpu.avx512_bf16},
      {"AMX BF16", cpu.amx_bf16},
      {"AMX INT8", cpu.amx_int8},
  };
  for (const auto& [name, available] : rows) {
    Json row = Json::object();
    row.set("name", Json(name));
    row.set("available", Json(available));
    list.push_back(std::move(row));
  }
  return list;
}

// In each op's table the first kernel that this processor can run is the one taken, shapes permitting.
Json kernels() {
  std::map<std::string, bool> has_choice;
  Json list = Json::array();
  for (const KernelListing& kernel : list_kernels()) {
    const bool chosen = kernel.available && !has_choice[kernel.op];
    if (chosen) has_choice[kernel.op] = true;
    Json row = Json::object();
    row.set("op", Json(kernel.op));
    row.set("kernel", Json(kernel.kernel));
    row.set("available", Json(kernel.available));
    row.set("chosen", Json(chosen));
    row.set("requirement", Json(kernel.requirement));
    list.push_back(std::move(row));
  }
  return list;
}

// What decoding a token reads, or at least the part of it that tells how fast.
size_t decode_bytes(const std::filesystem::path& model, int64_t context) {
  constexpr uint64_t kMostBytes = uint64_t{1} << 30;
  const Checkpoint checkpoint = read_checkpoint(model);
  uint64_t bytes = checkpoint.files.file_bytes;
  if (context > 0) {
    const ModelConfig config = find_architecture(checkpoint.config).read_config(checkpoint.config);
    bytes += KvCache::bytes_per_token(config, DType::kBF16) * static_cast<uint64_t>(context);
  }
  return static_cast<size_t>(std::min(bytes, kMostBytes));
}

Json limits(const ThreadPool& pool, const std::filesystem::path& model, int64_t context) {
  const MachineLimits measured = model.empty() ? measure_machine_limits(pool)
                                               : measure_machine_limits(pool, decode_bytes(model, context));
  Json json = Json::object();
  json.set("buffer_bytes", Json(static_cast<uint64_t>(measured.buffer_bytes)));
  json.set("read_gbps_1", Json(measured.read_one.gb_per_s));
  json.set("read_gbps_all", Json(measured.read_all.gb_per_s));
  json.set("read_gbps_all_best", Json(measured.read_all.best_gb_per_s));
  json.set("read_streams_per_thread", Json(measured.read_all.streams));
  json.set("fp32_gflops_1", Json(measured.fp32.one));
  json.set("fp32_gflops_all", Json(measured.fp32.all));
  json.set("bf16_gflops_all", Json(measured.amx_bf16.all));
  json.set("int8_gops_all", Json(measured.amx_int8.all));
  return json;
}

// Null where nothing is wrong.
Json problem_json(const std::string& problem) { return problem.empty() ? Json() : Json(problem); }
// Null where it was not to be measured.
Json rate_json(double rate) { return rate > 0 ? Json(rate) : Json(); }

// A GPU that can be used, with NVIDIA's libraries.
struct UsedGpu {
  explicit UsedGpu(int gpu) : queue(gpu) {
    if constexpr (kHasCuda) libraries = std::make_shared<GpuLibraries>(queue);
  }
  GpuQueue queue;
  std::shared_ptr<GpuLibraries> libraries;
};

void set_limits(Json& row, UsedGpu& gpu) {
  if constexpr (kHasCuda) {
    const GpuLimits limits = measure_gpu_limits(gpu.queue.gpu());
    row.set("copy_gbps", rate_json(limits.copy_gb_per_s));
    row.set("read_gbps", rate_json(limits.read_gb_per_s));
    double rate = 0;
    std::string problem;
    try {
      rate = measure_matrix_rate(gpu.queue, *gpu.libraries);
    } catch (const Error& error) {
      problem = std::string(error.what()) + "; see nvidia-smi";
    }
    row.set("bf16_tflops", rate_json(rate));
    if (!problem.empty()) row.set("problem", problem_json(problem));
  }
}

Json gpus(const GpuSupport& support, std::map<int, UsedGpu>& used) {
  Json list = Json::array();
  for (const Gpu& gpu : support.gpus) {
    Json row = Json::object();
    row.set("device", Json("cuda:" + std::to_string(gpu.index)));
    row.set("name", Json(gpu.name));
    row.set("compute_capability", Json(std::to_string(gpu.major) + "." + std::to_string(gpu.minor)));
    row.set("memory_bytes", Json(gpu.memory_bytes));
    row.set("multiprocessors", Json(gpu.multiprocessors));
    row.set("l2_bytes", Json(gpu.l2_bytes));
    row.set("problem", problem_json(gpu.problem));
    if (const auto found = used.find(gpu.index); found != used.end()) set_limits(row, found->second);
    list.push_back(std::move(row));
  }
  return list;
}

// The libraries are asked for where a GPU could use them.
Json cuda(const GpuSupport& support, std::map<int, UsedGpu>& used) {
  Json json = Json::object();
  json.set("built", Json(support.is_built));
  json.set("driver", Json(cuda_version_text(support.driver_version)));
  json.set("runtime", Json(cuda_version_text(support.runtime_version)));
  json.set("problem", problem_json(support.problem));
  if constexpr (kHasCuda) {
    if (!used.empty()) {
      GpuLibraries& libraries = *used.begin()->second.libraries;
      auto set = [&](const char* name, const std::string& problem, const char* consequence) {
        json.set(name, problem_json(problem.empty() ? "" : problem + consequence));
      };
      set("cublaslt_problem", libraries.gemm_problem(), "; without it prompts take longer");
      set("cusolver_problem", libraries.solver_problem(), "; without it no GPU runs GPTQ");
    }
  }
  return json;
}

Json gpu_kernels(std::map<int, UsedGpu>& used) {
  Json list = Json::array();
  if constexpr (kHasCuda) {
    if (used.empty()) return list;
    for (const GpuKernelListing& kernel : list_gpu_kernels(*used.begin()->second.libraries)) {
      Json row = Json::object();
      row.set("op", Json(kernel.op));
      row.set("kernel", Json(kernel.kernel));
      row.set("available", Json(kernel.available));
      row.set("used_for", Json(kernel.used_for));
      list.push_back(std::move(row));
    }
  }
  return list;
}

}  // namespace

std::string doctor_json(int threads, const std::filesystem::path& model, int64_t context) {
  const ThreadPool pool(threads);
  const MachineMemory memory = machine_memory();
  const GpuSupport& support = gpu_support();
  std::map<int, UsedGpu> used;
  for (const Gpu& gpu : support.gpus) {
    if (gpu.problem.empty()) used.try_emplace(gpu.index, gpu.index);
  }
  Json json = Json::object();
  json.set("version", Json(version()));
  json.set("processor", Json(cpu_features().name));
  json.set("instruction_sets", instruction_sets());
  json.set("processors", Json(available_processors()));
  json.set("threads", Json(pool.size()));
  json.set("memory_bytes", Json(memory.total_bytes));
  json.set("available_memory_bytes", Json(memory.available_bytes));
  json.set("cuda", cuda(support, used));
  json.set("gpus", gpus(support, used));
  json.set("limits", limits(pool, model, context));
  json.set("kernels", kernels());
  json.set("gpu_kernels", gpu_kernels(used));
  return json.dump(2);
}

}  // namespace lowbit
