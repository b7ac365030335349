#include "ops/cuda/libraries.h"

#include "base/fail.h"
#include "ops/context.h"

#include <algorithm>
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace lowbit {
namespace {

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

struct Cusolver {
  decltype(&cusolverDnCreate) create;
  decltype(&cusolverDnDestroy) destroy;
  decltype(&cusolverDnSetStream) set_stream;
  decltype(&cusolverDnXpotrf_bufferSize) factor_size;
  decltype(&cusolverDnXpotrf) factor;
  decltype(&cusolverDnXtrtri_bufferSize) invert_size;
  decltype(&cusolverDnXtrtri) invert;
};

// A library that stays open; its functions, or what is wrong.
class Library {
 public:
  Library(const char* name, int version, const char* package)
      : file_(fmt::format("lib{}.so.{}", name, version)),
        package_(package),
        handle_(dlopen(file_.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) {
      problem_ =
          fmt::format("{} was not found ({}); install CUDA's {} or put its folder into LD_LIBRARY_PATH",
                      file_, dlerror(), package_);
    }
  }

  template <class Function>
  void find(Function& function, const char* symbol) {
    if (!handle_) return;
    void* const address = dlsym(handle_, symbol);
    if (!address) {
      problem_ = fmt::format("{} has no function {}; install a newer {}", file_, symbol, package_);
    }
    function = reinterpret_cast<Function>(address);
  }
  const std::string& problem() const { return problem_; }

 private:
  std::string file_, package_, problem_;
  void* handle_;
};

std::string open_cublaslt(CublasLt& functions) {
  Library library("cublasLt", CUDART_VERSION / 1000, "libcublas");
  library.find(functions.create, "cublasLtCreate");
  library.find(functions.destroy, "cublasLtDestroy");
  library.find(functions.matmul, "cublasLtMatmul");
  library.find(functions.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.find(functions.desc_create, "cublasLtMatmulDescCreate");
  library.find(functions.desc_destroy, "cublasLtMatmulDescDestroy");
  library.find(functions.desc_set, "cublasLtMatmulDescSetAttribute");
  library.find(functions.layout_create, "cublasLtMatrixLayoutCreate");
  library.find(functions.layout_destroy, "cublasLtMatrixLayoutDestroy");
  library.find(functions.preference_create, "cublasLtMatmulPreferenceCreate");
  library.find(functions.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  library.find(functions.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  return library.problem();
}

std::string open_cusolver(Cusolver& functions) {
  Library library("cusolver", CUSOLVER_VER_MAJOR, "libcusolver");
  library.find(functions.create, "cusolverDnCreate");
  library.find(functions.destroy, "cusolverDnDestroy");
  library.find(functions.set_stream, "cusolverDnSetStream");
  library.find(functions.factor_size, "cusolverDnXpotrf_bufferSize");
  library.find(functions.factor, "cusolverDnXpotrf");
  library.find(functions.invert_size, "cusolverDnXtrtri_bufferSize");
  library.find(functions.invert, "cusolverDnXtrtri");
  return library.problem();
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorCode::kDevice, "cuBLASLt: {} was refused (status {})", what, static_cast<int>(status));
}

void check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  fail(ErrorCode::kDevice, "cuSOLVER: {} was refused (status {})", what, static_cast<int>(status));
}

// What the library may assume of an address.
uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  return static_cast<uint32_t>(std::min<uintptr_t>(bits & (~bits + 1), 256));
}

}  // namespace

struct GpuLibraries::State {
  explicit State(GpuQueue& given) : queue(given) {}
  ~State() {
    for (auto& [key, plan] : plans) release(plan);
    for (const cublasLtHandle_t used : {handle, loader})
      if (used) lt.destroy(used);
    if (solver_handle) solver.destroy(solver_handle);
  }

  // A product as the library sees it, columns first: c [m, n] from a, [k, m] or its transposed, and b
  // [k, n] or its transposed; strides between columns.
  struct Shape {
    int64_t m = 0, n = 0, k = 0, a_stride = 0, b_stride = 0, c_stride = 0;
    cublasOperation_t a_op = CUBLAS_OP_N, b_op = CUBLAS_OP_N;
    cudaDataType_t dtype = CUDA_R_16BF, c_dtype = CUDA_R_32F;
    bool has_bias = false;
    uint32_t a_alignment = 256, b_alignment = 256, c_alignment = 256;

    auto operator<=>(const Shape&) const = default;
  };
  // y^T [out, rows] = w [in, out]^T x^T [in, rows]
  static Shape shape_of(const Kind& kind) {
    return {.m = kind.out,
            .n = kind.rows,
            .k = kind.in,
            .a_stride = kind.in,
            .b_stride = kind.in,
            .c_stride = kind.out,
            .a_op = CUBLAS_OP_T,
            .c_dtype = kind.is_f32 ? CUDA_R_32F : CUDA_R_16BF,
            .has_bias = kind.has_bias};
  }

  // One that is ready to run.
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algo;
  };

  void release(Plan& plan) const {
    if (plan.desc) lt.desc_destroy(plan.desc);
    for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.c}) {
      if (layout) lt.layout_destroy(layout);
    }
  }

  Plan& plan_of(const Shape& shape) {
    const auto [place, is_new] = plans.try_emplace(shape);
    Plan& plan = place->second;
    if (!is_new) return plan;
    try {
      make(shape, plan, handle);
    } catch (...) {
      release(plan);
      plans.erase(place);
      throw;
    }
    return plan;
  }

  template <class T>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) const {
    check(lt.desc_set(desc, attribute, &value, sizeof value), "an attribute of a product");
  }

  void make(const Shape& shape, Plan& plan, cublasLtHandle_t handle) const {
    check(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, shape.a_op);
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, shape.b_op);
    if (shape.has_bias) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    auto layout = [&](cublasLtMatrixLayout_t& layout, cudaDataType_t dtype, cublasOperation_t op,
                      int64_t rows, int64_t columns, int64_t stride) {
      if (op == CUBLAS_OP_T) std::swap(rows, columns);
      check(lt.layout_create(&layout, dtype, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                             stride),
            "a layout");
    };
    layout(plan.a, shape.dtype, shape.a_op, shape.m, shape.k, shape.a_stride);
    layout(plan.b, shape.dtype, shape.b_op, shape.k, shape.n, shape.b_stride);
    layout(plan.c, shape.c_dtype, CUBLAS_OP_N, shape.m, shape.n, shape.c_stride);
    cublasLtMatmulPreference_t preference;
    check(lt.preference_create(&preference), "a preference");
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(lt.preference_set(preference, attribute, &value, sizeof value), "a preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // Sums whose order is not fixed are left out: the same input gives the same bits.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.a_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.b_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.c_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.c_alignment);
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    const cublasStatus_t status =
        lt.get_heuristic(handle, plan.desc, plan.a, plan.b, plan.c, plan.c, preference, 1, &result, &found);
    lt.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
      fail(ErrorCode::kDevice, "cuBLASLt knows no product of {} x {} x {} (status {})", shape.m, shape.k,
           shape.n, static_cast<int>(status));
    }
    plan.algo = result.algo;
  }

  void run(const Shape& shape, const void* a, const void* b, void* c, const void* bias, float alpha,
           float beta) {
    if (workspace.empty())
      workspace = Tensor::allocate_on(&queue, DType::kU8, {static_cast<int64_t>(kWorkspaceBytes)});
    const Plan& plan = plan_of(shape);
    if (bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    check(lt.matmul(handle, plan.desc, &alpha, a, plan.a, b, plan.b, &beta, c, plan.c, c, plan.c, &plan.algo,
                    workspace.mutable_bytes(), kWorkspaceBytes, static_cast<cudaStream_t>(queue.stream())),
          "a product");
  }

  // Where a product is tried; as large as the largest.
  struct Trial {
    cublasLtHandle_t handle;
    GpuQueue& queue;
    void *w, *x, *y, *workspace;
  };
  // With few rows, but the kernel that is taken for as many as `shape` has.
  bool try_product(Shape shape, const Trial& trial) const {
    Plan wanted, tried;
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    try {
      make(shape, wanted, trial.handle);
      shape.n = kTriedRows;
      make(shape, tried, trial.handle);
      if (shape.has_bias) set(tried.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, trial.x);
      const float alpha = 1, beta = shape.c_dtype == CUDA_R_32F ? 1 : 0;
      status = lt.matmul(trial.handle, tried.desc, &alpha, trial.w, tried.a, trial.x, tried.b, &beta, trial.y,
                         tried.c, trial.y, tried.c, &wanted.algo, trial.workspace, kWorkspaceBytes,
                         static_cast<cudaStream_t>(trial.queue.stream()));
    } catch (const Error&) {
    }
    release(wanted);
    release(tried);
    return status == CUBLAS_STATUS_SUCCESS;
  }
  static constexpr int64_t kTriedRows = 256;

  template <class Size, class Call>
  bool solve(const char* what, Size size, Call call);

  GpuQueue& queue;
  std::once_flag opened;
  std::string problem;
  CublasLt lt{};
  cublasLtHandle_t handle = nullptr;
  // Of load_code's thread. It ends with the other: to end one waits for all of the GPU's work, which would
  // spoil a recording (CUDA Programming Guide, "Prohibited and Unhandled Operations" of stream capture).
  cublasLtHandle_t loader = nullptr;
  Tensor workspace;
  std::map<Shape, Plan> plans;

  std::once_flag solver_opened;
  std::string no_solver;
  Cusolver solver{};
  cusolverDnHandle_t solver_handle = nullptr;
};

GpuLibraries::GpuLibraries(GpuQueue& queue) : state_(std::make_unique<State>(queue)) {}
GpuLibraries::~GpuLibraries() = default;

void GpuLibraries::read_early() {
  CublasLt functions;
  open_cublaslt(functions);
}

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
  State::Shape shape = State::shape_of({.rows = product.rows,
                                        .in = product.in,
                                        .out = product.out,
                                        .has_bias = product.bias != nullptr,
                                        .is_f32 = product.y.dtype == DType::kF32});
  shape.a_alignment = alignment_of(product.w);
  shape.b_alignment = alignment_of(product.x);
  shape.c_alignment = alignment_of(product.y.data);
  state_->run(shape, product.w, product.x, product.y.data, product.bias, 1, product.adds ? 1.0f : 0.0f);
}

int64_t GpuLibraries::load_code(std::span<const Kind> kinds, const std::atomic<bool>& is_enough) {
  if (!gemm_problem().empty()) return 0;
  State& state = *state_;
  int64_t in = 0, out = 0, weight = 0;
  for (const Kind& kind : kinds) {
    in = std::max(in, kind.in), out = std::max(out, kind.out), weight = std::max(weight, kind.in * kind.out);
  }
  GpuQueue queue(state.queue, GpuQueue::Beside::kIt);
  Workspace workspace(queue);  // buffers of another one may be in use by its queue
  const Scratch w = workspace.take(static_cast<size_t>(weight) * 2),
                x = workspace.take(static_cast<size_t>(std::max(in * State::kTriedRows, out)) * 2),
                y = workspace.take(static_cast<size_t>(out * State::kTriedRows) * 4),
                work = workspace.take(kWorkspaceBytes);
  if (!state.loader && state.lt.create(&state.loader) != CUBLAS_STATUS_SUCCESS) return 0;
  int64_t tried = 0;
  for (const Kind& kind : kinds) {
    if (is_enough) break;
    tried += state.try_product(State::shape_of(kind), {state.loader, queue, w.as<void>(), x.as<void>(),
                                                       y.as<void>(), work.as<void>()});
  }
  cudaStreamSynchronize(static_cast<cudaStream_t>(queue.stream()));
  return tried;
}

void GpuLibraries::add_product(const TransposedProduct& product) {
  if (!gemm_problem().empty()) fail(ErrorCode::kDevice, "{}", gemm_problem());
  // c^T [columns, rows] += b^T [columns, depth] a [depth, rows]
  const State::Shape shape{.m = product.columns,
                           .n = product.rows,
                           .k = product.depth,
                           .a_stride = product.b_stride,
                           .b_stride = product.a_stride,
                           .c_stride = product.c_stride,
                           .b_op = product.a_is_rows_first ? CUBLAS_OP_N : CUBLAS_OP_T,
                           .dtype = product.dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF,
                           .a_alignment = alignment_of(product.b),
                           .b_alignment = alignment_of(product.a),
                           .c_alignment = alignment_of(product.c)};
  state_->run(shape, product.b, product.a, product.c, nullptr, product.scale, 1);
}

const std::string& GpuLibraries::solver_problem() {
  State& state = *state_;
  std::call_once(state.solver_opened, [&] {
    state.no_solver = open_cusolver(state.solver);
    if (!state.no_solver.empty()) return;
    cudaSetDevice(state.queue.gpu());
    cusolverStatus_t status = state.solver.create(&state.solver_handle);
    if (status == CUSOLVER_STATUS_SUCCESS) {
      status = state.solver.set_stream(state.solver_handle, static_cast<cudaStream_t>(state.queue.stream()));
    }
    if (status != CUSOLVER_STATUS_SUCCESS) {
      state.no_solver =
          fmt::format("cuSOLVER does not start (status {}); see nvidia-smi", static_cast<int>(status));
    }
  });
  return state.no_solver;
}

namespace {

cudaDataType_t type_of(DType dtype) { return dtype == DType::kF64 ? CUDA_R_64F : CUDA_R_32F; }

}  // namespace

// The sizes of a solver's workspaces, there and here, and its call.
template <class Size, class Call>
bool GpuLibraries::State::solve(const char* what, Size size, Call call) {
  size_t there = 0, here = 0;
  check(size(&there, &here), what);
  constexpr size_t kFlagBytes = 256;  // the result's flag comes first
  Tensor work = Tensor::allocate_on(&queue, DType::kU8, {static_cast<int64_t>(kFlagBytes + there)});
  char* const flag = static_cast<char*>(work.mutable_bytes());
  std::vector<char> work_here(here);
  check(call(flag + kFlagBytes, there, work_here.data(), here, reinterpret_cast<int*>(flag)), what);
  int info = 0;
  queue.copy_out(&info, flag, sizeof info);
  return info == 0;
}

bool GpuLibraries::factor(DType dtype, int64_t n, void* matrix) {
  if (!solver_problem().empty()) fail(ErrorCode::kDevice, "{}", solver_problem());
  const State& state = *state_;
  const cudaDataType_t type = type_of(dtype);
  return state_->solve(
      "a factorization",
      [&](size_t* there, size_t* here) {
        return state.solver.factor_size(state.solver_handle, nullptr, CUBLAS_FILL_MODE_LOWER, n, type, matrix,
                                        n, type, there, here);
      },
      [&](void* there, size_t bytes_there, void* here, size_t bytes_here, int* info) {
        return state.solver.factor(state.solver_handle, nullptr, CUBLAS_FILL_MODE_LOWER, n, type, matrix, n,
                                   type, there, bytes_there, here, bytes_here, info);
      });
}

bool GpuLibraries::invert_triangle(DType dtype, int64_t n, void* matrix) {
  if (!solver_problem().empty()) fail(ErrorCode::kDevice, "{}", solver_problem());
  const State& state = *state_;
  const cudaDataType_t type = type_of(dtype);
  return state_->solve(
      "an inversion",
      [&](size_t* there, size_t* here) {
        return state.solver.invert_size(state.solver_handle, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, n,
                                        type, matrix, n, there, here);
      },
      [&](void* there, size_t bytes_there, void* here, size_t bytes_here, int* info) {
        return state.solver.invert(state.solver_handle, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, n, type,
                                   matrix, n, there, bytes_there, here, bytes_here, info);
      });
}

}  // namespace lowbit
