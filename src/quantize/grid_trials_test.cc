#include "quantize/grid_trials.h"

#include "base/files.h"
#include "quantize/options.h"
#include "quantize/test_problem.h"
#include "support.h"

#include <gtest/gtest.h>

namespace lowbit {
namespace {

using namespace lowbit::testing;
namespace fs = std::filesystem;

constexpr int32_t kFirst = 5;  // the token that every sample begins with
constexpr int64_t kHuge = 3;   // the channel in which it alone is huge
constexpr float kMagnitude = 60;

// Whether the layers' products need the huge value, which stands in every sample once.
enum class Need { kFirstToken, kNothing };

// A model whose norms make a huge value of the first token's channel. Where nothing needs it, q, k, v, gate
// and up do not read the channel.
void write_model(const fs::path& folder, Need need) {
  write_tiny_model(folder, {.is_tied = false});
  std::vector<NamedTensor> tensors;
  for (const NamedTensor& named : open_safetensors(folder / "model.safetensors").tensors) {
    Tensor values = Tensor::allocate(DType::kF32, named.tensor.shape());
    float* const list = values.mutable_data<float>();
    for (int64_t i = 0; i < values.element_count(); ++i) list[i] = float_at(named.tensor, i);
    const int64_t width = values.shape().back(), rows = values.element_count() / width;
    if (named.name == "model.embed_tokens.weight") {
      for (int64_t row = 0; row < rows; ++row) list[row * width + kHuge] = row == kFirst ? 400.0f : 0.0f;
    } else if (named.name.find("layernorm") != std::string::npos) {
      list[kHuge] = kMagnitude / 8;  // sqrt(width) is what the norm itself leaves of it
    } else if (width == 64 && rows > 1 && named.name != "lm_head.weight") {
      for (int64_t row = 0; row < rows; ++row) list[row * width + kHuge] *= need == Need::kNothing ? 0 : 0.1f;
    }
    tensors.push_back({named.name, converted(values, DType::kBF16)});
  }
  write_safetensors(folder / "changed", tensors);
  fs::rename(folder / "changed", folder / "model.safetensors");
}

std::vector<std::vector<int32_t>> samples_of(int count, size_t tokens) {
  std::mt19937_64 engine(4);
  std::vector<std::vector<int32_t>> samples(static_cast<size_t>(count), std::vector<int32_t>(tokens, kFirst));
  for (std::vector<int32_t>& ids : samples) {
    for (size_t i = 1; i < tokens; ++i) ids[i] = 6 + static_cast<int32_t>(engine() % 90);
  }
  return samples;
}

StageChoice chosen(Need need, std::span<const ObserverRule> rules, int threads) {
  const TemporaryFolder folder;
  write_model(folder.path(), need);
  SourceModel source = load_source(folder.path());
  QuantizeOptions options;
  options.method = "rtn";
  options.format = "int8";
  options.dialect = "compressed-tensors";
  options.activations = "int8-static";
  options = settled(options);
  const QuantizationSettings settings = resolve_settings(source.model, options);
  Machine machine(threads);
  const OpContext ops = machine.ops();
  MemoryMeter meter;
  // moving covers the huge value, mse all others with finer steps. Of o and down moving leaves next to
  // nothing.
  const auto grid = [&](const std::string& module, size_t rule) {
    const bool reads_norm = module.find("o_proj") == module.npos && module.find("down") == module.npos;
    const bool is_wide = rules[rule].observer == Observer::kMoving;
    return InputGrid{reads_norm ? (is_wide ? 1.0f : 0.08f) * kMagnitude / 127 : is_wide ? 50.0f : 0.2f, 0};
  };
  const GridProposals proposals{rules, [](const Linear& linear) { return std::get<Tensor>(linear.weight); },
                                grid};
  const Tensor before = std::get<Tensor>(source.model.block(1).linears()[0].weight);
  const StageChoice choice = choose_grids(source, ops, settings, proposals, samples_of(4, 32), meter, {});
  EXPECT_TRUE(same_bytes(before, std::get<Tensor>(source.model.block(1).linears()[0].weight)));
  return choice;
}

constexpr ObserverRule kWideAndFine[] = {{.observer = Observer::kMoving}, {.observer = Observer::kMse}};
constexpr ObserverRule kFineAndWide[] = {{.observer = Observer::kMse}, {.observer = Observer::kMoving}};

TEST(GridTrials, KeepAHugeValueOfEachSampleOnlyWhereTheModelNeedsIt) {
  for (const auto& rules : {kWideAndFine, kFineAndWide}) {
    const std::span<const ObserverRule> given(rules, 2);
    StageChoice needed = chosen(Need::kFirstToken, given, 2), unneeded = chosen(Need::kNothing, given, 2);
    EXPECT_EQ(given[needed["qkv"]].observer, Observer::kMoving);
    EXPECT_EQ(given[unneeded["qkv"]].observer, Observer::kMse);
    EXPECT_EQ(given[unneeded["gate_up"]].observer, Observer::kMse);
    // Each kind of stage has its own.
    EXPECT_EQ(given[needed["down"]].observer, Observer::kMse);
  }
}

TEST(GridTrials, AreTheSameForAnyNumberOfThreads) {
  for (const Need need : {Need::kFirstToken, Need::kNothing}) {
    const StageChoice one = chosen(need, kWideAndFine, 1);
    EXPECT_EQ(one.size(), 4u);
    EXPECT_EQ(chosen(need, kWideAndFine, 3), one);
  }
}

}  // namespace
}  // namespace lowbit
