#pragma once

#include <cuda_runtime_api.h>

namespace lowbit {

// Of the device that is current at the first call: all are used as it is.
inline int multiprocessors() {
  static const int found = [] {
    int index = 0, count = 1;
    cudaGetDevice(&index);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index);
    return count;
  }();
  return found;
}

}  // namespace lowbit
