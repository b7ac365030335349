// Matmul at decode and at prefill, and X^T X, for the shapes of real models, beside what the machine can do
// at most.
//
//   op_bench [--threads N] [--quick] [--decode | --prefill] [--kernel NAME] [--format NAME,...]
//
// Decode walks as many copies of a layer's weights as exceed the caches, so GB/s are of memory; the limit is
// measured over the same number of bytes, in turns with the kernels. Figures are medians of the repetitions.
#include "base/cpu.h"
#include "format/bits.h"
#include "format/codebook.h"
#include "ops/gram.h"
#include "ops/machine_limits.h"
#include "ops/matmul.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace lowbit {
namespace {

struct Settings {
  int threads = 0;
  bool is_quick = false, is_decode_only = false, is_prefill_only = false;
  std::string kernel;
  std::vector<std::string> formats;
};

struct Kind {
  const char* name;
  int bits;  // 0: dense BF16
  Format format = Format::kAffine;
  bool is_symmetric = true;
};
constexpr Kind kBf16 = {"bf16", 0}, kInt4 = {"int4", 4}, kInt8 = {"int8", 8};
// What decode and prefill meet; bits with which log2's values go down to 1/256, as of its best bases.
constexpr Kind kKinds[] = {
    kBf16,
    kInt4,
    {"int4z", 4, Format::kAffine, false},
    kInt8,
    {"int3", 3},
    {"int2", 2},
    {"nf4", 4, Format::kNf4},
    {"fp4", 4, Format::kFp4},
    {"fp8", 8, Format::kFp8},
    {"e5m2", 8, Format::kFp8E5m2},
    {"log4", 4, Format::kLog2},
    {"log6", 6, Format::kLog2},
    {"log8", 8, Format::kLog2},
    {"w8a8", 8, Format::kInt8},
};

struct Matrix {
  const char* name;
  int64_t out, in;
};
struct Model {
  const char* name;
  std::vector<std::vector<Matrix>> layer;  // groups that share x
  Matrix head;
};

const Model kModels[] = {
    {"SmolLM2-135M",
     {{{"q", 576, 576}, {"k", 192, 576}, {"v", 192, 576}},
      {{"o", 576, 576}},
      {{"gate", 1536, 576}, {"up", 1536, 576}},
      {{"down", 576, 1536}}},
     {"head", 49152, 576}},
    {"Qwen2-0.5B",
     {{{"q", 896, 896}, {"k", 128, 896}, {"v", 128, 896}},
      {{"o", 896, 896}},
      {{"gate", 4864, 896}, {"up", 4864, 896}},
      {{"down", 896, 4864}}},
     {"head", 151936, 896}},
    {"Qwen2-1.5B",
     {{{"q", 1536, 1536}, {"k", 256, 1536}, {"v", 256, 1536}},
      {{"o", 1536, 1536}},
      {{"gate", 8960, 1536}, {"up", 8960, 1536}},
      {{"down", 1536, 8960}}},
     {"head", 151936, 1536}},
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Tensor noise(DType dtype, Shape shape) {
  static std::mt19937_64 random(1);
  Tensor tensor = Tensor::allocate(dtype, std::move(shape));
  uint64_t* words = static_cast<uint64_t*>(tensor.mutable_bytes());
  for (size_t i = 0; i < tensor.byte_count() / 8; ++i) words[i] = random();
  return tensor;
}

Weight random_weight(int64_t out, int64_t in, const Kind& kind) {
  if (kind.bits == 0) {
    Tensor tensor = noise(DType::kBF16, {out, in});
    uint16_t* values = tensor.mutable_data<uint16_t>();
    for (int64_t i = 0; i < tensor.element_count(); ++i)
      values[i] = static_cast<uint16_t>((values[i] & 0x807f) | 0x3c80);
    return tensor;
  }
  QuantizedTensor weight;
  weight.format = kind.format;
  weight.bits = kind.bits;
  weight.group_size = kind.format == Format::kAffine ? 128 : 64;
  weight.out_features = out;
  weight.in_features = in;
  weight.codes = noise(DType::kI32, {packed_words(in, kind.bits), out});
  if (kind.format == Format::kFp8 ||
      kind.format == Format::kFp8E5m2) {  // as in real weights, none is subnormal
    for (int64_t i = 0; i < weight.codes.element_count(); ++i)
      weight.codes.mutable_data<int32_t>()[i] |= 0x40404040;
  }
  if (kind.format == Format::kLog2)
    weight.codebook = log_codebook({kind.bits, std::exp2(8.0f / static_cast<float>(1 << (kind.bits - 1)))});
  if (kind.format == Format::kInt8) {
    weight.group_size = in;
    weight.activations = ActivationFormat::kInt8Dynamic;
  }
  const bool is_affine = kind.format == Format::kAffine;
  weight.scales = Tensor::allocate(scale_dtype(kind.format), {weight.groups(), out});
  for (int64_t i = 0; i < weight.scales.element_count(); ++i) {
    if (is_affine) {
      weight.scales.mutable_data<uint16_t>()[i] = 0x2000;
    } else {
      weight.scales.mutable_data<float>()[i] = 0x1p-7f;
    }
  }
  if (!kind.is_symmetric) {
    weight.zero_points = noise(DType::kU8, {weight.groups(), out});
    for (int64_t i = 0; i < weight.zero_points.element_count(); ++i)
      weight.zero_points.mutable_data<uint8_t>()[i] &= 15;
  }
  return weight;
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : settings_(settings), threads_(settings.threads) {
    if (!settings.kernel.empty()) choice_.all = settings.kernel;
  }

  void limits() {
    limits_ = measure_machine_limits(threads_);
    std::printf("%s, %d threads\n", cpu_features().name.c_str(), threads_.size());
    std::printf("read %.1f GB/s one thread (%d streams), %.1f GB/s all (%d streams), over %zu MiB\n",
                limits_.read_one.gb_per_s, limits_.read_one.streams, limits_.read_all.gb_per_s,
                limits_.read_all.streams, limits_.buffer_bytes >> 20);
    std::printf("fp32 %.0f / %.0f GFLOP/s, amx bf16 %.0f / %.0f, amx int8 %.0f / %.0f (one thread / all)\n",
                limits_.fp32.one, limits_.fp32.all, limits_.amx_bf16.one, limits_.amx_bf16.all,
                limits_.amx_int8.one, limits_.amx_int8.all);
  }

  // All matrices of as many layers as make `bytes`.
  void decode(const Model& model, const Kind& kind, int64_t rows) {
    const size_t target = size_t{settings_.is_quick ? 96u : 256u} << 20;
    std::vector<std::vector<std::vector<Weight>>> layers;
    size_t bytes = 0;
    while (bytes < target) {
      auto& layer = layers.emplace_back();
      for (const auto& group : model.layer) {
        auto& weights = layer.emplace_back();
        for (const Matrix& matrix : group) {
          weights.push_back(random_weight(matrix.out, matrix.in, kind));
          bytes += weight_bytes(weights.back());
        }
      }
    }
    report("decode", model.name, "layers", kind, rows, bytes, [&] {
      for (const auto& layer : layers) {
        for (const auto& weights : layer) multiply(weights, rows, MatmulMode::kDecode);
      }
    });
  }

  void head(const Model& model, const Kind& kind, int64_t rows) {
    std::vector<std::vector<Weight>> copies;
    size_t bytes = 0;
    while (bytes < size_t{settings_.is_quick ? 96u : 256u} << 20) {
      copies.emplace_back().push_back(random_weight(model.head.out, model.head.in, kind));
      bytes += weight_bytes(copies.back()[0]);
    }
    report("decode", model.name, "head", kind, rows, bytes, [&] {
      for (const auto& copy : copies) multiply(copy, rows, MatmulMode::kDecode);
    });
  }

  // A layer of each kind, in turns.
  void prefill(const Model& model, const std::vector<Kind>& kinds, int64_t rows) {
    std::vector<std::vector<std::vector<Weight>>> layers(kinds.size());
    double operations = 0;
    for (const auto& group : model.layer) {
      for (auto& layer : layers) layer.emplace_back();
      for (const Matrix& matrix : group) {
        for (size_t i = 0; i < kinds.size(); ++i)
          layers[i].back().push_back(random_weight(matrix.out, matrix.in, kinds[i]));
        operations += 2.0 * static_cast<double>(rows * matrix.out * matrix.in);
      }
    }
    std::vector<std::vector<double>> seconds(kinds.size());
    for (int repeat = 0; repeat < 10; ++repeat) {
      for (size_t i = 0; i < kinds.size(); ++i) {
        const double begin = now();
        for (const auto& weights : layers[i]) multiply(weights, rows, MatmulMode::kPrefill);
        if (repeat > 0) seconds[i].push_back(now() - begin);
      }
    }
    for (size_t i = 0; i < kinds.size(); ++i)
      report_rate("prefill", model.name, kinds[i].name, rows, operations, median(seconds[i]));
  }

  // X^T X over the inputs of a layer's products, as calibration has it: rows come from memory.
  void gram(const Model& model) {
    constexpr int64_t kTokens = 8192;
    std::vector<double> seconds;
    double operations = 0;
    for (const auto& group : model.layer) {
      const int64_t width = group[0].in;
      operations += static_cast<double>(kTokens * width * (width + 1));
    }
    for (int repeat = 0; repeat < 6; ++repeat) {
      double taken = 0;
      for (const auto& group : model.layer) {
        const int64_t width = group[0].in;
        fill_x(kTokens * width);
        std::vector<float> h(static_cast<size_t>(width * width));
        const double begin = now();
        for (int64_t first = 0; first < kTokens; first += kGramTokens) {
          gram_accumulate(OpContext{&threads_, &workspace_, &choice_}, x_.data() + first * width, kGramTokens,
                          width, h.data());
        }
        taken += now() - begin;
      }
      if (repeat > 0) seconds.push_back(taken);
    }
    report_rate("X^T X  ", model.name, "BF16", kGramTokens, operations, median(seconds));
  }

 private:
  static constexpr int64_t kGramTokens = 2048;

  void fill_x(int64_t count) {
    if (x_.size() >= static_cast<size_t>(count)) return;
    x_.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < x_.size(); ++i)
      x_[i] = static_cast<float>(static_cast<int>(i * 7919 % 1001) - 500) * 0.002f;
  }

  void report_rate(const char* what, const char* model, const char* format, int64_t rows, double operations,
                   double seconds) {
    const double rate = operations / seconds * 1e-9;
    const double limit = limits_.amx_bf16.all > 0 ? limits_.amx_bf16.all : limits_.fp32.all;
    std::printf("%s %-13s layer  %-5s rows %4lld: %8.1f GFLOP/s, %3.0f %% of %.0f\n", what, model, format,
                static_cast<long long>(rows), rate, 100 * rate / limit, limit);
    std::fflush(stdout);
  }

  void multiply(const std::vector<Weight>& weights, int64_t rows, MatmulMode mode) {
    const int64_t in = in_features(weights[0]);
    int64_t out = 0;
    for (const Weight& weight : weights) out += out_features(weight);
    fill_x(rows * in);
    if (y_.size() < static_cast<size_t>(rows * out)) y_.resize(static_cast<size_t>(rows * out));
    std::vector<MatmulOutput> outputs;
    float* y = y_.data();
    for (const Weight& weight : weights) {
      outputs.push_back({&weight, nullptr, y});
      y += rows * out_features(weight);
    }
    matmul(OpContext{&threads_, &workspace_, &choice_}, x_.data(), rows, outputs, mode);
  }

  void report(const char* phase, const char* model, const char* what, const Kind& kind, int64_t rows,
              size_t bytes, const std::function<void()>& pass) {
    std::vector<double> seconds, limits;
    for (int repeat = 0; repeat < 6; ++repeat) {
      const double begin = now();
      pass();
      const double taken = now() - begin;
      if (repeat == 0) continue;
      seconds.push_back(taken);
      limits.push_back(measure_read_bandwidth(threads_, bytes, 0.0).gb_per_s);
    }
    const double rate = static_cast<double>(bytes) / median(seconds) * 1e-9, limit = median(limits);
    std::printf("%s  %-13s %-6s %-5s rows %4lld: %8.2f GB/s, %3.0f %% of %.1f (%zu MiB)\n", phase, model,
                what, kind.name, static_cast<long long>(rows), rate, 100 * rate / limit, limit, bytes >> 20);
    std::fflush(stdout);
  }

  Settings settings_;
  ThreadPool threads_;
  Workspace workspace_;
  KernelChoice choice_;
  MachineLimits limits_;
  std::vector<float> x_, y_;
};

int run(const Settings& settings) {
  Bench bench(settings);
  bench.limits();
  const auto is_wanted = [&](const Kind& kind) {
    return settings.formats.empty() || std::ranges::count(settings.formats, kind.name) > 0;
  };
  std::vector<Kind> kinds;
  std::copy_if(std::begin(kKinds), std::end(kKinds), std::back_inserter(kinds), is_wanted);
  for (const Model& model : kModels) {
    if (settings.is_quick && &model == &kModels[2]) continue;
    for (const int64_t rows : {1, 4, 8, 32}) {
      if (settings.is_prefill_only) break;
      for (const Kind& kind : kinds) bench.decode(model, kind, rows);
    }
    if (settings.is_decode_only) continue;
    for (const Kind& kind : {kInt4, kInt8, kBf16}) {
      if (is_wanted(kind) && !settings.is_prefill_only) bench.head(model, kind, 1);
    }
    for (const int64_t rows : {32, 128, 512}) bench.prefill(model, kinds, rows);
    if (!settings.is_prefill_only) bench.gram(model);
  }
  return 0;
}

}  // namespace
}  // namespace lowbit

int main(int argc, char** argv) {
  lowbit::Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--quick") {
      settings.is_quick = true;
    } else if (option == "--decode") {
      settings.is_decode_only = true;
    } else if (option == "--prefill") {
      settings.is_prefill_only = true;
    } else if (option == "--format" && i + 1 < argc) {
      std::istringstream names(argv[++i]);
      for (std::string name; std::getline(names, name, ',');) settings.formats.push_back(name);
    } else if (option == "--threads" && i + 1 < argc) {
      settings.threads = std::atoi(argv[++i]);
    } else if (option == "--kernel" && i + 1 < argc) {
      settings.kernel = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: op_bench [--threads N] [--quick] [--decode | --prefill] [--kernel NAME] [--format "
                   "NAME,...]\n");
      return 2;
    }
  }
  try {
    return lowbit::run(settings);
  } catch (const lowbit::Error& error) {
    std::fprintf(stderr, "op_bench: %s\n", error.what());
    return 1;
  }
}
