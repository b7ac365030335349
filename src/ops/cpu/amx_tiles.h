// The tile configuration of all AMX kernels here: eight tiles of 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace lowbit {
namespace {

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

// Static: GCC 12 takes the loading for a read of 8 bytes and drops the rest of a configuration on the stack.
// Load it in each kernel call, since each thread has its own tiles.
const TileConfiguration kFullTiles;

}  // namespace
}  // namespace lowbit
