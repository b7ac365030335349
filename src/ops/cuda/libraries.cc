#include "ops/cuda/libraries.h"

#include "base/fail.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <tuple>

namespace lowbit {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA asks for on Hopper

struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

// Empty when all functions were found; the library stays open.
std::string open_cublaslt(CublasLt& functions) {
  const std::string name = "libcublasLt.so." + std::to_string(CUDART_VERSION / 1000);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    return fmt::format(
        "cuBLASLt was not found ({}); install CUDA's libcublas or put its folder into LD_LIBRARY_PATH",
        dlerror());
  }
  std::string missing;
  auto find = [&](auto& function, const char* symbol) {
    void* const address = dlsym(library, symbol);
    if (!address) missing = symbol;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find(functions.create, "cublasLtCreate");
  find(functions.destroy, "cublasLtDestroy");
  find(functions.matmul, "cublasLtMatmul");
  find(functions.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.desc_create, "cublasLtMatmulDescCreate");
  find(functions.desc_destroy, "cublasLtMatmulDescDestroy");
  find(functions.desc_set, "cublasLtMatmulDescSetAttribute");
  find(functions.layout_create, "cublasLtMatrixLayoutCreate");
  find(functions.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(functions.preference_create, "cublasLtMatmulPreferenceCreate");
  find(functions.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(functions.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  return missing.empty() ? ""
                         : fmt::format("{} has no function {}; install a newer libcublas", name, missing);
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorCode::kDevice, "cuBLASLt: {} was refused (status {})", what, static_cast<int>(status));
}

}  // namespace

struct GpuLibraries::State {
  explicit State(GpuQueue& given) : queue(given) {}
  ~State() {
    for (auto& [key, plan] : plans) release(plan);
    if (handle) lt.destroy(handle);
  }

  // A product of one shape, ready to run.
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
    cublasLtMatmulAlgo_t algo;
  };
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, bool, bool>;  // rows, in, out, bias, F32, adds

  void release(Plan& plan) {
    if (plan.desc) lt.desc_destroy(plan.desc);
    for (cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y}) {
      if (layout) lt.layout_destroy(layout);
    }
  }

  Plan& plan_of(const Product& product) {
    const bool is_f32 = product.y.dtype == DType::kF32;
    const Key key{product.rows, product.in, product.out, product.bias != nullptr, is_f32, product.adds};
    const auto [place, is_new] = plans.try_emplace(key);
    Plan& plan = place->second;
    if (!is_new) return plan;
    try {
      make(product, is_f32 ? CUDA_R_32F : CUDA_R_16BF, plan);
    } catch (...) {
      release(plan);
      plans.erase(place);
      throw;
    }
    return plan;
  }

  // The library counts columns first: y^T [out, rows] = w [in, out]^T x^T [in, rows].
  void make(const Product& product, cudaDataType_t type, Plan& plan) {
    const auto in = static_cast<uint64_t>(product.in), out = static_cast<uint64_t>(product.out),
               rows = static_cast<uint64_t>(product.rows);
    check(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
          "a transposition");
    if (product.bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      check(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "a bias");
      check(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias, sizeof product.bias),
            "a bias");
    }
    check(lt.layout_create(&plan.w, CUDA_R_16BF, in, out, product.in), "a layout");
    check(lt.layout_create(&plan.x, CUDA_R_16BF, in, rows, product.in), "a layout");
    check(lt.layout_create(&plan.y, type, out, rows, product.out), "a layout");
    cublasLtMatmulPreference_t preference;
    check(lt.preference_create(&preference), "a preference");
    const size_t bytes = kWorkspaceBytes;
    check(lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes),
          "a preference");
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    const cublasStatus_t status =
        lt.get_heuristic(handle, plan.desc, plan.w, plan.x, plan.y, plan.y, preference, 1, &result, &found);
    lt.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
      fail(ErrorCode::kDevice, "cuBLASLt knows no product of [{}, {}] and [{}, {}] (status {})", product.rows,
           product.in, product.out, product.in, static_cast<int>(status));
    }
    plan.algo = result.algo;
  }

  GpuQueue& queue;
  std::once_flag opened;
  std::string problem;
  CublasLt lt{};
  cublasLtHandle_t handle = nullptr;
  Tensor workspace;
  std::map<Key, Plan> plans;
};

GpuLibraries::GpuLibraries(GpuQueue& queue) : state_(std::make_unique<State>(queue)) {}
GpuLibraries::~GpuLibraries() = default;

const std::string& GpuLibraries::gemm_problem() {
  State& state = *state_;
  std::call_once(state.opened, [&] {
    state.problem = open_cublaslt(state.lt);
    if (!state.problem.empty()) return;
    cudaSetDevice(state.queue.gpu());
    if (const cublasStatus_t status = state.lt.create(&state.handle); status != CUBLAS_STATUS_SUCCESS) {
      state.problem =
          fmt::format("cuBLASLt does not start (status {}); see nvidia-smi", static_cast<int>(status));
      state.handle = nullptr;
    }
  });
  return state.problem;
}

void GpuLibraries::multiply(const Product& product) {
  if (!gemm_problem().empty()) fail(ErrorCode::kDevice, "{}", gemm_problem());
  State& state = *state_;
  if (state.workspace.empty()) {
    state.workspace =
        Tensor::allocate_on(state.queue.gpu(), DType::kU8, {static_cast<int64_t>(kWorkspaceBytes)});
  }
  State::Plan& plan = state.plan_of(product);
  if (product.bias) {
    check(state.lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias, sizeof product.bias),
          "a bias");
  }
  const float one = 1, beta = product.adds ? 1.0f : 0.0f;
  check(state.lt.matmul(state.handle, plan.desc, &one, product.w, plan.w, product.x, plan.x, &beta,
                        product.y.data, plan.y, product.y.data, plan.y, &plan.algo,
                        state.workspace.mutable_bytes(), kWorkspaceBytes,
                        static_cast<cudaStream_t>(state.queue.stream())),
        "a product");
}

}  // namespace lowbit
