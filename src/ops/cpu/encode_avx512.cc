#include "ops/encode_args.h"

#include <immintrin.h>
#include <string.h>

namespace lowbit {
namespace {
// In this order.
// clang-format off
#include "ops/cpu/vector_avx512.inc"
#include "ops/cpu/levels.inc"
#include "ops/cpu/encode.inc"
// clang-format on
}  // namespace

void encode_groups_avx512(const EncodeGroupsArgs& args, int64_t begin, int64_t end, void*) noexcept {
  encode_groups(args, begin, end);
}
void encode_rows_avx512(const EncodeRowsArgs& args, int64_t begin, int64_t end, void*) noexcept {
  encode_rows(args, begin, end);
}

}  // namespace lowbit
