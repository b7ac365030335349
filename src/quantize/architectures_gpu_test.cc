// Quantizing on a GPU what is not as Llama: as good as on the CPU, and the same each time.
#include "base/files.h"
#include "base/gpu.h"
#include "model/random_models_test_support.h"
#include "quantize/results_test_support.h"
#include "quantize/run.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;

class GpuQuantizeArchitecture : public ::testing::TestWithParam<RandomModel> {
 protected:
  void SetUp() override {
    if (!gpu_support().problem.empty()) GTEST_SKIP() << gpu_support().problem;
    write_random_model(folder_.path() / "model", GetParam());
    std::mt19937_64 engine(3);
    for (int i = 0; i < 14; ++i) {
      std::vector<int32_t> ids(10 + engine() % 60);
      for (int32_t& id : ids) id = static_cast<int32_t>(engine() % kRandomVocab);
      if (i < 12) calibration_.tokens += static_cast<int64_t>(ids.size());
      (i < 12 ? calibration_.samples : calibration_.held_back).push_back(ids);
    }
  }
  QuantizeResult run(const std::string& device, const std::string& name) {
    QuantizeOptions options;
    options.affine = {4, 32, true};
    options.threads = 2;
    options.device = device;
    return quantize_tokens(folder_.path() / "model", folder_.path() / name, options, calibration_);
  }
  std::string file(const std::string& name) { return read_file(folder_.path() / name / "model.safetensors"); }

  TemporaryFolder folder_;
  Calibration calibration_;
};

TEST_P(GpuQuantizeArchitecture, MakesAsGoodAFileAsTheCpuAndTheSameEachTime) {
  const QuantizeResult cpu = run("cpu", "cpu"), gpu = run("cuda", "gpu");
  run("cuda", "again");
  EXPECT_TRUE(file("gpu") == file("again"));
  testing::expect_as_good(gpu, cpu);
}

std::string name_of(const ::testing::TestParamInfo<RandomModel>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(GpuDecoders, GpuQuantizeArchitecture, ::testing::ValuesIn(kRandomDecoders), name_of);
INSTANTIATE_TEST_SUITE_P(GpuEncoders, GpuQuantizeArchitecture, ::testing::Values(kRandomBert), name_of);

}  // namespace
}  // namespace lowbit
