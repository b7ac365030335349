// A GPU's memory as one model uses it. All that lowbit takes there goes through here, so that a limit holds,
// the figures are known, and an error can say what was being done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace lowbit {

enum class GpuUse { kWeights, kCache, kWork };

// What memory is taken for. The texts are constants: "the KV cache", and what helps when there is no more.
struct GpuPurpose {
  GpuUse use = GpuUse::kWork;
  std::string_view what = "what is being computed";
  int64_t tokens = 0;  // 0: not part of the text
  std::string_view helps = "use --device cpu";
};

struct GpuMemoryFigures {
  uint64_t weights = 0, cache = 0, work = 0;  // the most of each at a time
  uint64_t used = 0, peak = 0;                // of all, now and at most
};

class GpuMemory {
 public:
  // gpu: index as in base/gpu.h; limit in bytes, 0: none.
  explicit GpuMemory(int gpu, uint64_t limit = 0) : gpu_(gpu), limit_(limit) {}
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;

  // Aligned to 256 bytes, not initialised. kOutOfMemory names the purpose, what was asked for, what was free,
  // and what helps; kDevice: the driver's answer when it is another.
  void* allocate(size_t bytes);
  void* allocate(size_t bytes, GpuUse use);        // for another use than the purpose's
  void* try_allocate(size_t bytes, GpuUse use);    // null instead of kOutOfMemory
  [[noreturn]] void fail_for(size_t bytes) const;  // as allocate() does
  void free(void* memory);

  // That could still be taken: what the GPU has free, or what the limit leaves.
  uint64_t available() const;
  uint64_t free_bytes() const;  // of the GPU
  uint64_t limit() const { return limit_; }
  GpuMemoryFigures figures() const;

  // Called when memory is missing, before giving up: frees what is only kept for later.
  void set_reclaim(std::function<void()> reclaim) { reclaim_ = std::move(reclaim); }

  const GpuPurpose& purpose() const { return purpose_; }
  void set_purpose(const GpuPurpose& purpose) { purpose_ = purpose; }

 private:
  struct Piece {
    size_t bytes;
    GpuUse use;
  };
  void* take(size_t bytes, GpuUse use);

  int gpu_;
  uint64_t limit_;
  GpuPurpose purpose_;
  std::function<void()> reclaim_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, Piece> pieces_;
  uint64_t used_[3] = {}, most_[3] = {}, peak_ = 0;  // by GpuUse
};

// The text of kOutOfMemory.
struct GpuShortage {
  GpuPurpose purpose;
  int gpu = 0;
  uint64_t asked = 0, free = 0;
  uint64_t used = 0, limit = 0;  // limit 0: none
};
std::string shortage_text(const GpuShortage& shortage);

}  // namespace lowbit
