#ifndef CONCLAVE_KERNELS_CPU_LANE_ORDER_H_
#define CONCLAVE_KERNELS_CPU_LANE_ORDER_H_

// The one order in which every dot product is summed.
//
// Columns are taken in blocks of 32. Of block b, lane j of 16 adds column 32 b + 2 j, then column
// 32 b + 2 j + 1; at the end the lanes are added in a tree (j with j + 8, + 4, + 2, + 1). The order
// is the same for any number of tokens, any range of rows, bf16 and MXFP4, and for all instruction
// sets with a fused multiply-add: a register holds a part of the 16 lanes. It fits both formats: 32
// bits of bf16 hold an even and an odd column, and so does a byte of MXFP4.
//
// Activations are laid out for it once: the even columns of a block, then the odd ones.
//
//   packed[32 b + j] = x[32 b + 2 j], packed[32 b + 16 + j] = x[32 b + 2 j + 1], j < 16
//
// The last block is filled with zeros.

#include <cstdint>

namespace conclave::kernels {

inline constexpr int64_t kBlockColumns = 32;
inline constexpr int64_t kLanes = 16;

constexpr int64_t PackedSize(int64_t cols) {
  return (cols + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
}

// x [cols] -> packed [PackedSize(cols)].
inline void PackRow(const float* x, int64_t cols, float* packed) {
  const int64_t whole = cols / kBlockColumns * kBlockColumns;
  for (int64_t block = 0; block < whole; block += kBlockColumns) {
    for (int64_t j = 0; j < kLanes; ++j) {
      packed[block + j] = x[block + 2 * j];
      packed[block + kLanes + j] = x[block + 2 * j + 1];
    }
  }
  if (whole == cols) return;
  for (int64_t j = 0; j < kBlockColumns; ++j) packed[whole + j] = 0;
  for (int64_t col = whole; col < cols; ++col) {
    packed[whole + (col - whole) / 2 + (col - whole) % 2 * kLanes] = x[col];
  }
}

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_LANE_ORDER_H_
