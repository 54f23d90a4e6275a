#ifndef CONCLAVE_KERNELS_CUDA_MXFP4_LAYOUT_H_
#define CONCLAVE_KERNELS_CUDA_MXFP4_LAYOUT_H_

// How an MXFP4 matrix [rows, cols] lies in device memory: 4 bits a weight and a byte a scale, as in
// the checkpoint, but in the order in which tensor-core fragments want them, so that a lane's
// 16-byte load becomes operand registers by shifts and masks alone.
//
//   matrix = tiles of 16 rows, one after the other
//   tile   = | group 0 | group 1 | ... | trailer: 16 words |             (TileBytes)
//   group  = 320 columns = | 5 chunks of weights, 512 bytes each | 5 chunks of scales, 32 each |
//   chunk  = 64 columns: lane l's 16 bytes at 16 l
//
// Lane l = 4 g + t holds rows g and g + 8 of the tile: words (row g, block 0), (row g + 8, block
// 0), (row g, block 1), (row g + 8, block 1), a block being 32 columns with one scale. Per word,
// four pairs of columns {2t, 2t + 1} + {0, 8, 16, 24}: the A operands of two m16n8k16 products. Of
// the scales, lane l needs the 4 bytes at 4 g, in the order of its words.
//
// Columns and rows past the end are zero weights. The trailer has, for each row, the bias (bf16)
// and above it a power of two (bf16) that the row's sums are multiplied by: 1, except in rows whose
// scales are too large for the decoding (above kMaxScale), which are lowered by it.

#include <cstdint>

namespace conclave::kernels::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kBlockCols = 32;  // of one scale
inline constexpr int kChunkCols = 64;
inline constexpr int kGroupChunks = 5;
inline constexpr int kGroupCols = kChunkCols * kGroupChunks;
inline constexpr int kChunkBytes = 512;
inline constexpr int kChunkScaleBytes = 32;
inline constexpr int kScalesOffset = kGroupChunks * kChunkBytes;  // within a group
inline constexpr int kGroupBytes = kScalesOffset + kGroupChunks * kChunkScaleBytes;
inline constexpr int kTrailerBytes = kTileRows * 4;
// Matrices end with zero tiles up to a multiple of this.
inline constexpr int kTileMultiple = 12;

constexpr int64_t NumGroups(int64_t cols) { return (cols + kGroupCols - 1) / kGroupCols; }
constexpr int64_t TileBytes(int64_t cols) { return NumGroups(cols) * kGroupBytes + kTrailerBytes; }
constexpr int64_t NumTiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
constexpr int64_t PaddedTiles(int64_t rows) {
  return (NumTiles(rows) + kTileMultiple - 1) / kTileMultiple * kTileMultiple;
}
constexpr int64_t MatrixBytes(int64_t rows, int64_t cols) {
  return PaddedTiles(rows) * TileBytes(cols);
}

// Row of the checkpoint's matrix in row `row` of tile `tile`. The gate_up matrix alternates gate
// and up; its tiles have 8 gates above the 8 ups that belong to them, so that one lane gets both.
constexpr int64_t SourceRow(int64_t tile, int row, bool gate_up) {
  if (!gate_up) return tile * kTileRows + row;
  return 2 * (tile * (kTileRows / 2) + row % (kTileRows / 2)) + row / (kTileRows / 2);
}

// --- Weights ---
//
// Shifted so that its sign is bit 15 and its three other bits are bits 8..6 of a half word, an
// E2M1 code is the bf16 number value * 2^-126 (subnormal for 0.5, which products honour). The
// decoded bits of a pair are then `rotated & kCodeMask`, low column in the low half. Three pairs
// fit one word at rotations 0, 6 and 12; the bits they leave over, in the words of rows g and g + 8
// together, hold the two fourth pairs once brought together in one word:
// (first & kOwnBits) | (rotate_left(second, 2) & ~kOwnBits).
inline constexpr uint32_t kCodeMask = 0x81C081C0;
inline constexpr uint32_t kOwnBits = 0x06030603;
// To the right: of a word's three pairs, and of the word brought together.
inline constexpr int kRotation0 = 0;
inline constexpr int kRotation1 = 6;
inline constexpr int kRotation2 = 12;
inline constexpr int kFirstSharedRotation = 26;
inline constexpr int kSecondSharedRotation = 4;
inline constexpr int kSharedShift = 2;

constexpr uint32_t RotateRight(uint32_t value, int by) {
  return by == 0 ? value : value >> by | value << (32 - by);
}

// Bits of a pair (a byte: low nibble first) that RotateRight(, rotation) & kCodeMask decodes.
constexpr uint32_t PlacePair(uint8_t pair, int rotation) {
  const uint32_t codes = (pair & 0xFu) | (pair & 0xF0u) << 12;
  const uint32_t decoded = (codes & 0x00080008) << 12 | (codes & 0x00070007) << 6;
  return RotateRight(decoded, (32 - rotation) % 32);
}

struct WordPair {
  uint32_t first;   // row g
  uint32_t second;  // row g + 8
};
// `first` and `second`: the four pairs of a block, as bytes of the checkpoint.
constexpr WordPair PackWords(const uint8_t (&first)[4], const uint8_t (&second)[4]) {
  const uint32_t shared =
      PlacePair(first[3], kFirstSharedRotation) | PlacePair(second[3], kSecondSharedRotation);
  return {PlacePair(first[0], kRotation0) | PlacePair(first[1], kRotation1) |
              PlacePair(first[2], kRotation2) | (shared & kOwnBits),
          PlacePair(second[0], kRotation0) | PlacePair(second[1], kRotation1) |
              PlacePair(second[2], kRotation2) | RotateRight(shared & ~kOwnBits, kSharedShift)};
}

// --- Scales ---
//
// Stored: the exponent field of the bf16 number 2^(scale - 127) * 2^126, which decoded weights are
// multiplied by.

// Largest scale byte with a finite factor.
inline constexpr int kMaxScale = 128;

// What a row's scales are lowered by, given the largest of them.
constexpr int RowShift(int max_scale) { return max_scale > kMaxScale ? max_scale - kMaxScale : 0; }
// Weights below 2^-130 of the row's largest scale lose bits or vanish: float32 sums do not see
// them.
constexpr uint8_t PackScale(int scale, int row_shift) {
  const int field = scale - row_shift + 126;
  return static_cast<uint8_t>(field < 0 ? 0 : field);
}
constexpr uint32_t PackTrailer(uint16_t bias_bf16, int row_shift) {
  return static_cast<uint32_t>(127 + row_shift) << 23 | bias_bf16;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_MXFP4_LAYOUT_H_
