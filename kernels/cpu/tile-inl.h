// Walks a range of rows and all tokens in register tiles, compiled once per instruction set.
//
// A matrix is a type with Row, At(row), `blocks`, and Tail(row, buffer) when `tail_cols` > 0.

#if defined(CONCLAVE_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_TILE_INL_H_
#undef CONCLAVE_KERNELS_CPU_TILE_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {

// Tokens of a register tile; R rows of T tokens hold R * T * kParts sums.
constexpr int kTileTokens = 3;
// Rows that stay in cache while the tokens pass.
constexpr int64_t kRowBlock = 8;

struct Bf16Rows {
  using Row = Bf16Row;
  static constexpr int kSingleTokenRows = 4;

  const uint16_t* data;
  int64_t row_stride;
  int64_t blocks;
  int64_t tail_cols;

  HWY_INLINE Row At(int64_t row) const { return {data + row * row_stride}; }
  HWY_INLINE Row Tail(int64_t row, uint16_t* buffer) const {
    std::memset(buffer, 0, kBlockColumns * sizeof(uint16_t));
    std::memcpy(buffer, data + row * row_stride + blocks * kBlockColumns,
                tail_cols * sizeof(uint16_t));
    return {buffer};
  }
};

struct PackedRows {
  using Row = PackedRow;
  static constexpr int kSingleTokenRows = 4;
  static constexpr int64_t tail_cols = 0;

  const float* data;
  int64_t blocks;

  HWY_INLINE Row At(int64_t row) const { return {data + row * blocks * kBlockColumns}; }
};

template <int R, int T, class Matrix>
HWY_INLINE void RowTile(const Matrix& matrix, int64_t row, const float* const* x,
                        float (&dots)[R][T]) {
  typename Matrix::Row rows[R];
  for (int r = 0; r < R; ++r) rows[r] = matrix.At(row + r);
  if constexpr (requires(uint16_t * buffer) { matrix.Tail(row, buffer); }) {
    if (matrix.tail_cols > 0) {
      uint16_t buffers[R][kBlockColumns];
      typename Matrix::Row tails[R];
      for (int r = 0; r < R; ++r) tails[r] = matrix.Tail(row + r, buffers[r]);
      DotTile<R, T>(rows, matrix.blocks, tails, x, dots);
      return;
    }
  }
  DotTile<R, T, typename Matrix::Row>(rows, matrix.blocks, nullptr, x, dots);
}

// out[t * out_stride + row] for rows [0, count) of a strip that starts at `first`.
template <int R, int T, class Matrix>
void Strip(const Matrix& matrix, int64_t first, int64_t count, const float* const* x, float* out,
           int64_t out_stride) {
  int64_t row = 0;
  for (; row + R <= count; row += R) {
    float dots[R][T];
    RowTile<R, T>(matrix, first + row, x, dots);
    for (int t = 0; t < T; ++t) {
      for (int r = 0; r < R; ++r) out[t * out_stride + row + r] = dots[r][t];
    }
  }
  if constexpr (R > 1) {
    if (row < count) {
      Strip<1, T>(matrix, first + row, count - row, x, out + row, out_stride);
    }
  }
}

// The tile that comes next when `left` tokens are left: 4 is two and two, not three and one.
HWY_INLINE int64_t NextTileTokens(int64_t left) {
  return left == kTileTokens + 1 ? 2 : std::min<int64_t>(left, kTileTokens);
}

template <class Matrix>
void AllTokens(const Matrix& matrix, int64_t first, int64_t count, const float* const* x,
               int64_t tokens, float* out, int64_t out_stride) {
  if (tokens == 1) {
    Strip<Matrix::kSingleTokenRows, 1>(matrix, first, count, x, out, out_stride);
    return;
  }
  for (int64_t row = 0; row < count; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, count - row);
    for (int64_t t = 0; t < tokens;) {
      const int64_t tile = NextTileTokens(tokens - t);
      float* to = out + t * out_stride + row;
      if (tile == 3) {
        Strip<2, 3>(matrix, first + row, rows, x + t, to, out_stride);
      } else if (tile == 2) {
        Strip<2, 2>(matrix, first + row, rows, x + t, to, out_stride);
      } else {
        Strip<2, 1>(matrix, first + row, rows, x + t, to, out_stride);
      }
      t += tile;
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#endif
