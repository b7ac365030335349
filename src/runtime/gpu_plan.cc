#include "runtime/gpu_plan.h"

#include "lowbit/bytes.h"

#include <algorithm>
#include <fmt/format.h>

namespace lowbit {

GpuPlan plan_with_streamed(const GpuSizes& sizes, int64_t count) {
  const auto layers = static_cast<int64_t>(sizes.layers.size());
  GpuPlan plan;
  plan.needed_bytes = sizes.frame + sizes.cache + sizes.work;
  for (int64_t i = 0; i < count; ++i) plan.streamed.push_back((i + 1) * layers / count - 1);
  size_t next = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const uint64_t bytes = sizes.layers[static_cast<size_t>(layer)];
    if (next < plan.streamed.size() && plan.streamed[next] == layer) {
      ++next;
      plan.streamed_bytes += bytes;
      plan.buffer_bytes = std::max(plan.buffer_bytes, bytes);
    } else {
      plan.needed_bytes += bytes;
    }
  }
  plan.needed_bytes += 2 * plan.buffer_bytes;
  return plan;
}

GpuPlan plan_layers(const GpuSizes& sizes, uint64_t available) {
  const auto layers = static_cast<int64_t>(sizes.layers.size());
  GpuPlan plan = plan_with_streamed(sizes, 0);
  plan.fits = plan.needed_bytes <= available;
  for (int64_t count = 3; !plan.fits && count <= layers; ++count) {
    plan = plan_with_streamed(sizes, count);
    plan.fits = plan.needed_bytes <= available;
  }
  return plan;
}

std::string shortage_text(const GpuSizes& sizes, uint64_t available, uint64_t limit) {
  const std::string have =
      fmt::format("{} of GPU memory{}", bytes_text(available),
                  limit > 0 ? fmt::format(" (--max-gpu-memory {})", bytes_text(limit)) : std::string());
  if (sizes.frame > available) {
    return fmt::format(
        "the embedding and the head alone take {}, which do not fit into {}, and cannot be streamed; use "
        "--device cpu",
        bytes_text(sizes.frame), have);
  }
  const uint64_t largest =
      sizes.layers.empty() ? 0 : *std::max_element(sizes.layers.begin(), sizes.layers.end());
  return fmt::format(
      "the model does not fit into {}, even when its layers are streamed: embedding and head take {}, "
      "keys and values of {} tokens {} (--kv-cache-tokens), computing {}, two layers at a time {}; "
      "use a smaller --kv-cache-tokens, or --device cpu",
      have, bytes_text(sizes.frame), sizes.tokens, bytes_text(sizes.cache), bytes_text(sizes.work),
      bytes_text(2 * largest));
}

}  // namespace lowbit
