// Blocks of a cluster (compute capability 9.0) that send each other floats. A cluster barrier would do, but
// it waits for all that its threads have written, global memory too; here a barrier in shared memory counts
// the bytes that arrive. Where there are no clusters the functions do nothing, and nobody has anything to
// send.
#pragma once

#include "ops/cuda/device.cuh"

#include <cstdint>

namespace lowbit {
namespace {

// Where a block stands: its cluster, of how many, and its rank in it.
struct InCluster {
  int cluster, clusters, rank;
};
__device__ inline InCluster in_cluster() {
  InCluster place{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), 0};
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(place.cluster));
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(place.clusters));
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(place.rank));
#endif
  return place;
}

// Nothing may be sent before all blocks have begun: all arrive, and wait before they send.
__device__ inline void arrive_in_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// An mbarrier in shared memory counts the bytes that other blocks of the cluster send.
__device__ inline void expect_bytes(uint64_t* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
__device__ inline void wait_for_bytes(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  uint32_t is_done = 0;
  while (!is_done)
    asm volatile(
        "{ .reg .pred done; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], 0; "
        "selp.u32 %0, 1, 0, done; }"
        : "=r"(is_done)
        : "r"(shared_address(barrier))
        : "memory");
#endif
}
// To the same place in another block of the cluster, whose barrier counts it.
__device__ inline void send(float2* to, int block, float2 value, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  uint32_t there, counter;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(block));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(counter)
               : "r"(shared_address(barrier)), "r"(block));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(there),
      "f"(value.x), "f"(value.y), "r"(counter)
      : "memory");
#endif
}

}  // namespace
}  // namespace lowbit
