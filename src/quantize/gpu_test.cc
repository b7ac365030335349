// Quantizing on a GPU beside the CPU. Skipped where there is none.
#include "base/gpu.h"

#include "base/files.h"
#include "ops/cuda/libraries.h"
#include "quantize/gpu_budget.h"
#include "quantize/results_test_support.h"
#include "quantize/run.h"
#include "quantize/source_model.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <gtest/gtest.h>
#include <optional>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

class GpuMethod : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    queue_.emplace(0);
    libraries_.emplace(*queue_);
    if (!libraries_->solver_problem().empty()) GTEST_SKIP() << libraries_->solver_problem();
    workspace_.emplace(*queue_);
    gpu_ = {&machine_.pool, &*workspace_, nullptr, &*queue_, &*libraries_};
  }
  // On the BF16 numbers that both get.
  Hessian hessian_there(const Tensor& x) {
    HessianAccumulator accumulator(gpu_, x.size(1));
    const Tensor there = copied_to(*queue_, x);
    accumulator.add({there.bytes(), x.dtype()}, x.size(0));
    return accumulator.finish();
  }

  Machine machine_;
  std::optional<GpuQueue> queue_;
  std::optional<Workspace> workspace_;
  std::optional<GpuLibraries> libraries_;
  OpContext gpu_;
};

TEST_F(GpuMethod, IsAsGoodAsTheCpuAndTheSameEachTime) {
  struct Case {
    int bits, group_size;
    bool sym, desc_act, static_groups, updated_groups;
    float mse;
    int sweeps;
    DType dtype;
  };
  constexpr Case kCases[] = {{4, 128, true, false, false, true, 2.4f, 3, DType::kBF16},
                             {4, 32, true, false, false, true, 2.4f, 0, DType::kBF16},
                             {4, 32, false, false, false, true, 2.4f, 2, DType::kF16},
                             {3, 48, true, false, false, true, 0, 1, DType::kF32},
                             {2, 16, false, true, false, true, 2.4f, 1, DType::kF32},
                             {4, 32, true, true, true, true, 2, 1, DType::kBF16},
                             {8, -1, true, true, false, true, 2.4f, 1, DType::kBF16},
                             {4, -1, false, false, false, true, 2.4f, 3, DType::kF64},
                             {4, 32, true, false, true, false, 2.4f, 0, DType::kBF16},
                             {3, 32, true, false, false, false, 2.4f, 1, DType::kBF16}};
  for (const Case& c : kCases) {
    for (int64_t width : {64, 200, 300}) {
      SCOPED_TRACE(fmt::format("{} bits, groups of {}, sym {}, desc_act {}, static {}, width {}", c.bits,
                               c.group_size, c.sym, c.desc_act, c.static_groups, width));
      const Tensor x = converted(correlated_inputs(2 * width, width, 11), DType::kBF16);
      const Hessian hessian = hessian_of(machine_.ops(), converted(x, DType::kF32)),
                    other_hessian = hessian_there(x);
      MatrixProblem problem;
      problem.module = "layer.module";
      problem.weight = converted(random_tensor({70, width}, 5, 0.05f), c.dtype);
      problem.weight_there = copied_to(*queue_, problem.weight);
      problem.affine = {c.bits, c.group_size, c.sym};
      problem.gptq.desc_act = c.desc_act;
      problem.gptq.static_groups = c.static_groups;
      problem.gptq.act_group_aware = !c.desc_act;
      problem.gptq.updated_groups = c.updated_groups;
      problem.gptq.mse = c.mse;
      problem.gptq.refine_sweeps = c.sweeps;
      problem.least_zero_point = c.sym ? 0 : 1;
      const OpContext cpu = machine_.ops();
      FactorCache factors(cpu, hessian), factors_there(gpu_, other_hessian);
      const QuantizedMatrix expected = quantize_gptq(cpu, problem, factors),
                            got = quantize_gptq(gpu_, problem, factors_there),
                            again = quantize_gptq(gpu_, problem, factors_there);
      ASSERT_EQ(got.method, "gptq") << got.note;
      EXPECT_TRUE(same_weight(got.weight, again.weight));
      EXPECT_TRUE(same_bytes(got.weight.column_order, expected.weight.column_order));
      const Tensor weight = converted(problem.weight, DType::kF32);
      const double error = output_error(weight, got.weight, hessian),
                   reference = output_error(weight, expected.weight, hessian);
      EXPECT_NEAR(error / reference, 1, 0.03);
      ASSERT_TRUE(got.relative_error);
      if (expected.relative_error) {
        EXPECT_NEAR(*got.relative_error / *expected.relative_error, 1, 0.015);
      }
      EXPECT_NEAR(*got.relative_error, relative_error(cpu, problem.weight, got.weight, &hessian),
                  1e-3 * *got.relative_error);
      EXPECT_NEAR(got.loss / expected.loss, 1, 0.03);
    }
  }
}

TEST_F(GpuMethod, FallsBackToRounding) {
  const int64_t width = 64;
  Tensor x = correlated_inputs(100, width, 6);
  x.mutable_data<float>()[64 * 7 + 3] = std::numeric_limits<float>::quiet_NaN();
  const Hessian broken = hessian_there(x), zero = hessian_there(Tensor::zeros(DType::kF32, {10, width}));
  MatrixProblem problem;
  problem.module = "layer.module";
  problem.weight = random_tensor({16, width}, 6);
  problem.weight_there = copied_to(*queue_, problem.weight);
  problem.affine = {4, 32, true};
  for (const auto& [hessian, text] :
       {std::pair<const Hessian*, const char*>{&zero, "zero"}, {&broken, "non-finite"}}) {
    FactorCache factors(gpu_, *hessian);
    const QuantizedMatrix result = quantize_gptq(gpu_, problem, factors);
    EXPECT_EQ(result.method, "rtn");
    EXPECT_NE(result.note.find(text), std::string::npos) << result.note;
    EXPECT_TRUE(same_weight(result.weight, quantize_rtn(machine_.ops(), problem).weight));
  }
}

class GpuRun : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    options_.affine = {4, 32, true};
    options_.threads = 2;
    std::mt19937_64 engine(3);
    calibration_.kind = "chat";
    for (int i = 0; i < 14; ++i) {
      std::vector<int32_t> ids(10 + engine() % 60);
      for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 96);
      if (i < 12) calibration_.tokens += static_cast<int64_t>(ids.size());
      (i < 12 ? calibration_.samples : calibration_.held_back).push_back(ids);
    }
  }
  QuantizeResult run(const std::string& device, const std::string& name) {
    options_.device = device;
    return quantize_tokens(folder_.path() / "model", folder_.path() / name, options_, calibration_);
  }
  std::string file(const std::string& name) { return read_file(folder_.path() / name / "model.safetensors"); }

  TemporaryFolder folder_;
  Calibration calibration_;
  QuantizeOptions options_;
};

TEST_F(GpuRun, MakesAsGoodAFileAsTheCpuAndTheSameEachTime) {
  for (bool is_tied : {true, false}) {
    for (bool true_sequential : {true, false}) {
      write_tiny_model(folder_.path() / "model", {.is_tied = is_tied});
      options_.lm_head = !is_tied;
      options_.gptq.true_sequential = true_sequential;
      options_.overwrite = true;
      const QuantizeResult cpu = run("cpu", "cpu"), gpu = run("cuda", "gpu");
      const std::string first = file("gpu");
      run("cuda", "gpu");
      EXPECT_TRUE(first == file("gpu"));
      options_.calibration.batch_size = 3;  // does not change the codes
      run("cuda", "gpu");
      EXPECT_TRUE(first == file("gpu"));
      options_.calibration.batch_size = 8;
      testing::expect_as_good(gpu, cpu);
    }
  }
}

// With less and less memory carries are made anew, and hidden states come from this machine's memory: the
// file stays the same. With too little for anything the error says so, or the CPU does it.
TEST_F(GpuRun, MakesTheSameFileWithLittleMemory) {
  write_tiny_model(folder_.path() / "model", {});
  run("cuda", "whole");
  const SourceModel source = load_source(folder_.path() / "model");
  const CalibrationBatches batches(source.model, calibration_.samples);
  const GpuBudget budget =
      gpu_budget(source.model, resolve_settings(source.model, options_), batches, calibration_.tokens);
  for (const uint64_t limit :
       {budget.least() + budget.hidden + budget.carry, budget.least() + budget.hidden, budget.least()}) {
    SCOPED_TRACE(limit - budget.least());
    options_.max_gpu_memory = limit;
    options_.overwrite = true;
    const QuantizeResult result = run("cuda", "little");
    EXPECT_TRUE(file("little") == file("whole"));
    EXPECT_LE(result.peak_gpu_bytes, limit);
    EXPECT_GT(result.peak_gpu_bytes, 0u);
  }
  options_.max_gpu_memory = budget.least() - 1;
  const std::string text = error_of(ErrorCode::kOutOfMemory, [&] { run("cuda", "too-little"); });
  EXPECT_NE(text.find("--max-gpu-memory"), std::string::npos) << text;
  EXPECT_EQ(run("auto", "on-cpu").peak_gpu_bytes, 0u);
}

// What forward passes and narrow matrices have left is not missing where a wide one needs the most.
TEST_F(GpuRun, WideLayersNeedNoMoreThanTheBudget) {
  write_tiny_model(folder_.path() / "model", {.intermediate = 6016});
  calibration_.samples.assign(64, std::vector<int32_t>(200));
  std::mt19937_64 engine(4);
  for (auto& ids : calibration_.samples) {
    for (int32_t& id : ids) id = static_cast<int32_t>(engine() % 96);
  }
  calibration_.tokens = 64 * 200;
  run("cuda", "whole");
  const SourceModel source = load_source(folder_.path() / "model");
  const CalibrationBatches batches(source.model, calibration_.samples);
  const GpuBudget budget =
      gpu_budget(source.model, resolve_settings(source.model, options_), batches, calibration_.tokens);
  for (const uint64_t spare : {uint64_t{0}, budget.least() / 8, budget.least() / 4, budget.least() / 2}) {
    SCOPED_TRACE(spare);
    options_.max_gpu_memory = budget.least() + spare;
    options_.overwrite = true;
    run("cuda", "little");
    EXPECT_TRUE(file("little") == file("whole"));
  }
}

// What is kept of layers that were finished is taken up, and the file is that of a run in one go.
TEST_F(GpuRun, ResumesToTheSameFile) {
  write_tiny_model(folder_.path() / "model", {});
  run("cuda", "whole");
  struct Stopped {};
  Log log;
  log.progress = [](const Progress& progress) {
    if (progress.phase == "quantize" && progress.done == 16) throw Stopped();
  };
  options_.device = "cuda";
  EXPECT_THROW(
      quantize_tokens(folder_.path() / "model", folder_.path() / "parts", options_, calibration_, log),
      Stopped);
  const QuantizeResult resumed = run("cuda", "parts");
  EXPECT_TRUE(resumed.resumed);
  EXPECT_TRUE(file("parts") == file("whole"));
  // A file of the CPU's layers is not gone on with.
  EXPECT_THROW(
      quantize_tokens(folder_.path() / "model", folder_.path() / "mixed", options_, calibration_, log),
      Stopped);
  EXPECT_FALSE(run("cpu", "mixed").resumed);
}

}  // namespace
}  // namespace lowbit
