// Quantizes a model folder to 4 bits with GPTQ, calibrated on the user's own dialogues.
//   quantize MODEL OUT train.jsonl
#include "lowbit/quantize.h"

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL OUT CALIBRATION.jsonl\n", argv[0]);
    return 2;
  }
  try {
    lowbit::QuantizeOptions options;
    options.affine.bits = 4;
    options.affine.group_size = 128;
    options.calibration.data = argv[3];
    options.calibration.samples = 64;
    options.calibration.max_length = 512;

    lowbit::Log log;
    log.progress = [](const lowbit::Progress& progress) {
      std::fprintf(stderr, "%.*s %lld/%lld\n", static_cast<int>(progress.phase.size()), progress.phase.data(),
                   static_cast<long long>(progress.done), static_cast<long long>(progress.total));
    };
    const lowbit::QuantizeResult result = lowbit::quantize(argv[1], argv[2], options, log);
    std::printf(
        "%zu modules, %.1f MB -> %.1f MB, %.1f s; divergence from the source on held-back samples %.4f nats: "
        "%s\n",
        result.modules.size(), static_cast<double>(result.source_bytes) / 1e6,
        static_cast<double>(result.bytes) / 1e6, result.seconds, result.mean_kl,
        result.passed ? "passed" : "FAILED");
    return result.passed ? 0 : 3;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
