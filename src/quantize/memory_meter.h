// The most anonymous memory (without mapped files) that a run was seen to hold. Linux keeps no such mark, so
// it is asked at the points where much is held.
#pragma once

#include "base/cpu.h"

#include <algorithm>
#include <cstdint>

namespace lowbit {

class MemoryMeter {
 public:
  void sample() { peak_ = std::max(peak_, process_memory().anonymous_bytes); }  // by one thread at a time
  uint64_t peak_anonymous_bytes() const { return peak_; }

 private:
  uint64_t peak_ = 0;
};

}  // namespace lowbit
