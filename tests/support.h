// What tests of every room share: where the material lies, and throwing expectations.
#pragma once

#include "lowbit/error.h"

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>

namespace lowbit::testing {

// Real models and vectors that are not part of the project: LOWBIT_MATERIAL, else ../shared/material beside
// the source tree. Empty when absent: the test then says skipped.
inline std::filesystem::path material_folder() {
  namespace fs = std::filesystem;
  const char* set = std::getenv("LOWBIT_MATERIAL");
  const fs::path folder = set ? fs::path(set) : fs::path(LOWBIT_SOURCE_DIR) / ".." / "shared" / "material";
  return fs::is_directory(folder) ? fs::canonical(folder) : fs::path();
}

// The message of the Error that body() throws; a failure when it throws none or another code.
template <class Body>
std::string error_of(ErrorCode code, Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an error of code " << error_code_name(code) << ", nothing was thrown";
  return "";
}

// Processor seconds that body() takes: unlike the clock's, they do not grow when the machine is busy. Builds
// with checks and sanitizers get ten times as long for the same work.
template <class Body>
double processor_seconds(Body body) {
#if defined(LOWBIT_CHECKS)
  constexpr double kSlowness = 10;
#else
  constexpr double kSlowness = 1;
#endif
  const std::clock_t start = std::clock();
  body();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / kSlowness;
}

// A fresh folder under the system's temporary folder, removed at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lowbit_test_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace lowbit::testing

#define LOWBIT_SKIP_WITHOUT_MATERIAL(variable)                                 \
  const std::filesystem::path variable = ::lowbit::testing::material_folder(); \
  if (variable.empty()) GTEST_SKIP() << "no material folder (set LOWBIT_MATERIAL to run this test)"
