#include "ops/gemm_args.h"

#include <immintrin.h>

namespace lowbit {
namespace {
namespace single {
using Real = float;
using GemmVec = __m256;
constexpr int kVectors = 2, kPairA = 1, kPairB = 1;  // 6 x 16: 12 sums, 2 columns, 1 row of 16 registers
inline GemmVec gv_zero() { return _mm256_setzero_ps(); }
inline GemmVec gv_set1(Real x) { return _mm256_set1_ps(x); }
inline GemmVec gv_load(const Real* p) { return _mm256_loadu_ps(p); }
inline void gv_store(Real* p, GemmVec x) { _mm256_storeu_ps(p, x); }
inline GemmVec gv_add(GemmVec a, GemmVec b) { return _mm256_add_ps(a, b); }
inline GemmVec gv_sub(GemmVec a, GemmVec b) { return _mm256_sub_ps(a, b); }
inline GemmVec gv_fma(GemmVec a, GemmVec b, GemmVec c) { return _mm256_fmadd_ps(a, b, c); }
#include "ops/cpu/gemm.inc"
}  // namespace single

namespace twice {
using Real = double;
using GemmVec = __m256d;
constexpr int kVectors = 2, kPairA = 1, kPairB = 1;
inline GemmVec gv_zero() { return _mm256_setzero_pd(); }
inline GemmVec gv_set1(Real x) { return _mm256_set1_pd(x); }
inline GemmVec gv_load(const Real* p) { return _mm256_loadu_pd(p); }
inline void gv_store(Real* p, GemmVec x) { _mm256_storeu_pd(p, x); }
inline GemmVec gv_add(GemmVec a, GemmVec b) { return _mm256_add_pd(a, b); }
inline GemmVec gv_sub(GemmVec a, GemmVec b) { return _mm256_sub_pd(a, b); }
inline GemmVec gv_fma(GemmVec a, GemmVec b, GemmVec c) { return _mm256_fmadd_pd(a, b, c); }
#include "ops/cpu/gemm.inc"
}  // namespace twice
}  // namespace

void gemm_avx2(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  single::multiply_tiles(args, begin, end);
}
void gemm_double_avx2(const GemmArgs& args, int64_t begin, int64_t end, void*) noexcept {
  twice::multiply_tiles(args, begin, end);
}

}  // namespace lowbit
