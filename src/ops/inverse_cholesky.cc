// Everything runs on the matrix mirrored at its anti-diagonal, G[i][j] = H[n-1-j][n-1-i]: with G = C^T C (C
// upper, the usual Cholesky), R is the mirror of C, and U = R^-1 the mirror of Y = C^-1. Both factorisation
// and inversion go block row by block row over row-major memory, so that all but the diagonal blocks is
// products of packed panels.
#include "ops/cuda/gram_gpu.h"
#include "ops/gemm_internal.h"
#include "ops/gram.h"

#include <cmath>

namespace lowbit {
namespace {

// Upper c of the block g = c^T c, in place; elements below the diagonal are not touched. False: not positive
// definite.
template <class T>
bool factor_block(T* g, int64_t stride, int64_t size) {
  for (int64_t k = 0; k < size; ++k) {
    T* pivot_row = g + k * stride;
    if (!(pivot_row[k] > 0) || !std::isfinite(pivot_row[k])) return false;
    const T pivot = std::sqrt(pivot_row[k]);
    for (int64_t j = k; j < size; ++j) pivot_row[j] /= pivot;
    for (int64_t i = k + 1; i < size; ++i) {
      T* row = g + i * stride;
      const T factor = pivot_row[i];
      for (int64_t j = i; j < size; ++j) row[j] -= factor * pivot_row[j];
    }
  }
  return true;
}

// y = c^-1, both upper; y: [size][size] dense, zero below the diagonal.
template <class T>
void invert_block(const T* c, int64_t stride, int64_t size, T* y) {
  std::fill(y, y + size * size, T{0});
  for (int64_t i = size - 1; i >= 0; --i) {
    T* row = y + i * size;
    row[i] = 1;
    for (int64_t k = i + 1; k < size; ++k) {
      const T factor = c[i * stride + k];
      const T* below = y + k * size;
      for (int64_t j = k; j < size; ++j) row[j] -= factor * below[j];
    }
    const T pivot = c[i * stride + i];
    for (int64_t j = i; j < size; ++j) row[j] /= pivot;
  }
}

template <class T>
void zero_block(T* c, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) std::fill(c + r * stride, c + r * stride + columns, T{0});
}

// Replaces upper g [n, n] by the inverse of its Cholesky factor.
template <class T>
bool invert_factor(const OpContext& context, T* g, int64_t n) {
  const int64_t size = n >= 4096 ? 192 : 96, blocks = (n + size - 1) / size;
  const OpScratch inverses(context, static_cast<size_t>(blocks * size * size) * sizeof(T));
  const OpScratch packed_a(context, packed_a_bytes<T>(n, size)),
      packed_b(context, packed_b_bytes<T>(n, size));
  T* a = packed_a.as<T>();
  T* b = packed_b.as<T>();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k = block * size, width = std::min(size, n - k), rest = n - k - width;
    T* inverse = inverses.as<T>() + block * size * size;
    T* diagonal = g + k * n + k;
    if (!factor_block(diagonal, n, width)) return false;
    invert_block(diagonal, n, width, inverse);
    if (rest == 0) continue;
    // C[k, rest] = inverse(C[k, k])^T G[k, rest], then G[rest, rest] -= C[k, rest]^T C[k, rest].
    T* panel = diagonal + width;
    pack_a(context, static_cast<const T*>(inverse), 1, width, width, width, a);
    pack_b(context, static_cast<const T*>(panel), n, rest, width, b);
    zero_block(panel, n, width, rest);
    multiply_packed<T>(context, {a, b, panel, n, width, rest, width, width, false, false});
    pack_a(context, static_cast<const T*>(panel), 1, n, rest, width, a);
    pack_b(context, static_cast<const T*>(panel), n, rest, width, b);
    multiply_packed<T>(context, {a, b, g + (k + width) * (n + 1), n, rest, rest, width, width, true, true});
  }
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const int64_t k = block * size, width = std::min(size, n - k), rest = n - k - width;
    const T* inverse = inverses.as<T>() + block * size * size;
    T* diagonal = g + k * n + k;
    if (rest > 0) {  // Y[k, rest] = inverse(C[k, k]) T[k, rest], T what the blocks below have left there
      T* panel = diagonal + width;
      pack_a(context, inverse, width, 1, width, width, a);
      pack_b(context, static_cast<const T*>(panel), n, rest, width, b);
      zero_block(panel, n, width, rest);
      multiply_packed<T>(context, {a, b, panel, n, width, rest, width, width, false, false});
    }
    for (int64_t r = 0; r < width; ++r)
      std::copy(inverse + r * width + r, inverse + (r + 1) * width, diagonal + r * (n + 1));
    if (k > 0) {  // T[above, k and right] -= C[above, k] Y[k, k and right]; C[above, k] is needed no more
                  // after it
      T* above = g + k;
      pack_a(context, static_cast<const T*>(above), n, 1, k, width, a);
      pack_b(context, static_cast<const T*>(diagonal), n, n - k, width, b);
      zero_block(above, n, k, width);
      multiply_packed<T>(context, {a, b, above, n, k, n - k, width, width, true, false});
    }
  }
  return true;
}

// to[i][j] = from[n-1-j][n-1-i] for i <= j, in tiles that stay in the cache. From and to may differ in type,
// not in memory.
template <class From, class To>
void mirror(const OpContext& context, const From* from, int64_t n, To* to) {
  constexpr int64_t kTile = 32;
  split_work(context, (n + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, last = std::min(n, first + kTile);
      for (int64_t column = first; column < n; column += kTile) {
        for (int64_t i = first; i < last; ++i) {
          for (int64_t j = std::max(i, column); j < std::min(n, column + kTile); ++j) {
            to[i * n + j] = static_cast<To>(from[(n - 1 - j) * n + n - 1 - i]);
          }
        }
      }
      for (int64_t i = first; i < last; ++i) std::fill(to + i * n, to + i * n + i, To{0});
    }
  });
}

template <class T>
bool run(const OpContext& context, const float* h, int64_t n, float* u) {
  const OpScratch work(context, static_cast<size_t>(n * n) * sizeof(T));
  mirror(context, h, n, work.as<T>());
  if (!invert_factor(context, work.as<T>(), n)) return false;
  mirror(context, work.as<T>(), n, u);
  return true;
}

}  // namespace

bool inverse_cholesky(const OpContext& context, const float* h, int64_t width, FactorPrecision precision,
                      float* u) {
  if (width <= 0) return true;
  if constexpr (kHasCuda) {
    if (context.gpu) return inverse_cholesky_on_gpu(context, h, width, precision, u);
  }
  return precision == FactorPrecision::kDouble ? run<double>(context, h, width, u)
                                               : run<float>(context, h, width, u);
}

}  // namespace lowbit
