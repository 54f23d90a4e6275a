// Walks a range of rows and all tokens in register tiles, compiled once per instruction set.
//
// A matrix is a type with Row, At(row), `blocks`, and Tail(row, buffer) when rows may end within a
// block. All tiles add in the same order: their shape is a matter of speed alone.

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

// Tokens of the largest tile. Its sums are R * T * kParts registers: with 16 of them there is room
// for one row, with AVX-512 (32, and one to a token) for four, which also hides the latency.
constexpr int kTileTokens = 4;
constexpr int RowsOfTile(int tokens) { return kParts == 1 ? 4 : tokens <= 2 ? 2 : 1; }
// Rows that stay in the first-level cache while the tokens pass ...
constexpr int64_t kRowBlock = 8;
// ... and blocks whose activations of a tile do (16 KiB) while the rows pass.
constexpr int64_t kChunkBlocks = 32;

struct Bf16Rows {
  using Row = Bf16Row;

  const uint16_t* data;
  int64_t row_stride;
  int64_t blocks;
  int64_t tail_cols;

  HWY_INLINE Row At(int64_t row) const { return {data + row * row_stride, kRowBlock * row_stride}; }
  HWY_INLINE Row Tail(int64_t row, uint16_t* buffer) const {
    std::memset(buffer, 0, kBlockColumns * sizeof(uint16_t));
    std::memcpy(buffer, data + row * row_stride + blocks * kBlockColumns,
                tail_cols * sizeof(uint16_t));
    return {buffer, 0};
  }
};

// sums += blocks [begin, end) of rows [row, row + R).
template <int R, int T, class Matrix>
HWY_INLINE void AddRows(const Matrix& matrix, int64_t row, int64_t begin, int64_t end,
                        const float* const* x, Sums<R, T>& sums) {
  typename Matrix::Row rows[R];
  for (int r = 0; r < R; ++r) rows[r] = matrix.At(row + r);
  AddBlocks<R, T>(rows, begin, end, x, sums);
}

// sums += what is left of rows [row, row + R) after the whole blocks.
template <int R, int T, class Matrix>
HWY_INLINE void AddTails(const Matrix& matrix, int64_t row, const float* const* x,
                         Sums<R, T>& sums) {
  if constexpr (requires(uint16_t * buffer) { matrix.Tail(row, buffer); }) {
    if (matrix.tail_cols == 0) return;
    uint16_t buffers[R][kBlockColumns];
    typename Matrix::Row tails[R];
    for (int r = 0; r < R; ++r) tails[r] = matrix.Tail(row + r, buffers[r]);
    AddBlock<R, T>(tails, 0, x, matrix.blocks * kBlockColumns, sums);
  }
}

template <int R, int T>
HWY_INLINE void Store(const Sums<R, T>& sums, float* out, int64_t out_stride) {
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) out[t * out_stride + r] = SumLanes(sums.lanes[r][t]);
  }
}

// out[t * out_stride + row - first] for rows [first, first + count), each row in one go.
template <int R, int T, class Matrix>
void LongStrip(const Matrix& matrix, int64_t first, int64_t count, const float* const* x,
               float* out, int64_t out_stride) {
  int64_t row = 0;
  for (; row + R <= count; row += R) {
    Sums<R, T> sums;
    sums.Clear();
    AddRows<R, T>(matrix, first + row, 0, matrix.blocks, x, sums);
    AddTails<R, T>(matrix, first + row, x, sums);
    Store<R, T>(sums, out + row, out_stride);
  }
  if constexpr (R > 1) {
    if (row < count) {
      LongStrip<1, T>(matrix, first + row, count - row, x, out + row, out_stride);
    }
  }
}

// As LongStrip for at most kRowBlock rows, chunk by chunk of the columns.
template <int R, int T, class Matrix>
void ChunkedStrip(const Matrix& matrix, int64_t first, int64_t count, const float* const* x,
                  float* out, int64_t out_stride) {
  constexpr int64_t kTiles = kRowBlock / R;
  if (count < kRowBlock) {
    LongStrip<R, T>(matrix, first, count, x, out, out_stride);
    return;
  }
  Sums<R, T> sums[kTiles];
  for (Sums<R, T>& tile : sums) tile.Clear();
  for (int64_t begin = 0; begin < matrix.blocks; begin += kChunkBlocks) {
    const int64_t end = std::min(begin + kChunkBlocks, matrix.blocks);
    for (int64_t i = 0; i < kTiles; ++i) {
      AddRows<R, T>(matrix, first + i * R, begin, end, x, sums[i]);
    }
  }
  for (int64_t i = 0; i < kTiles; ++i) {
    AddTails<R, T>(matrix, first + i * R, x, sums[i]);
    Store<R, T>(sums[i], out + i * R, out_stride);
  }
}

template <int T, class Matrix>
void RowBlock(const Matrix& matrix, int64_t first, int64_t count, const float* const* x, float* out,
              int64_t out_stride) {
  ChunkedStrip<RowsOfTile(T), T>(matrix, first, count, x, out, out_stride);
}

// SingleTokenRows: rows of a tile when there is one token and memory is all that counts.
template <int SingleTokenRows, class Matrix>
void AllTokens(const Matrix& matrix, int64_t first, int64_t count, const float* const* x,
               int64_t tokens, float* out, int64_t out_stride) {
  if (tokens == 1) {
    LongStrip<SingleTokenRows, 1>(matrix, first, count, x, out, out_stride);
    return;
  }
  for (int64_t row = 0; row < count; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, count - row);
    for (int64_t t = 0; t < tokens; t += kTileTokens) {
      float* to = out + t * out_stride + row;
      switch (std::min<int64_t>(tokens - t, kTileTokens)) {
        case 4:
          RowBlock<4>(matrix, first + row, rows, x + t, to, out_stride);
          break;
        case 3:
          RowBlock<3>(matrix, first + row, rows, x + t, to, out_stride);
          break;
        case 2:
          RowBlock<2>(matrix, first + row, rows, x + t, to, out_stride);
          break;
        default:
          RowBlock<1>(matrix, first + row, rows, x + t, to, out_stride);
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#endif
