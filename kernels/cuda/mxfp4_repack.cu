#include "kernels/cuda/mxfp4_repack.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 32 * kGroupChunks;

__device__ int LargestScale(const RawMxfp4& raw, int64_t row) {
  const int64_t blocks = raw.cols / kBlockCols;
  int largest = 0;
  for (int64_t b = 0; b < blocks; ++b) largest = max(largest, int{raw.scales[row * blocks + b]});
  return largest;
}

// One row's part of a lane's chunk.
struct RowPart {
  __device__ RowPart(const RawMxfp4& matrix, int64_t source_row)
      : raw(matrix), row(source_row), valid(source_row < matrix.rows) {
    if (valid) shift = RowShift(LargestScale(matrix, source_row));
  }
  __device__ bool Has(int64_t block) const { return valid && block < raw.cols / kBlockCols; }
  // The four pairs of lane column t.
  __device__ void Pairs(int64_t block, int t, uint8_t (&pairs)[4]) const {
    const bool has = Has(block);
    const uint8_t* bytes = raw.blocks + (row * (raw.cols / kBlockCols) + block) * 16;
    for (int i = 0; i < 4; ++i) pairs[i] = has ? bytes[t + 4 * i] : 0;
  }
  __device__ uint32_t Scale(int64_t block) const {
    if (!Has(block)) return 0;
    return PackScale(raw.scales[row * (raw.cols / kBlockCols) + block], shift);
  }

  const RawMxfp4& raw;
  int64_t row;
  bool valid;
  int shift = 0;
};

// Block: one group of one tile, a warp to each chunk.
__global__ void RepackMxfp4Kernel(RawMxfp4 raw, std::byte* out) {
  const int64_t tile = blockIdx.x;
  const int64_t group = blockIdx.y;
  const int chunk = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const RowPart first(raw, SourceRow(tile, g, raw.gate_up));
  const RowPart second(raw, SourceRow(tile, g + 8, raw.gate_up));
  const int64_t block = (group * kGroupChunks + chunk) * (kChunkCols / kBlockCols);
  std::byte* tile_out = out + tile * TileBytes(raw.cols);
  std::byte* group_out = tile_out + group * kGroupBytes;

  uint32_t words[4];
  for (int b = 0; b < 2; ++b) {
    uint8_t first_pairs[4];
    uint8_t second_pairs[4];
    first.Pairs(block + b, t, first_pairs);
    second.Pairs(block + b, t, second_pairs);
    const WordPair packed = PackWords(first_pairs, second_pairs);
    words[2 * b] = packed.first;
    words[2 * b + 1] = packed.second;
  }
  *reinterpret_cast<uint4*>(group_out + chunk * kChunkBytes + lane * 16) = {words[0], words[1],
                                                                            words[2], words[3]};
  if (t == 0) {
    *reinterpret_cast<uint32_t*>(group_out + kScalesOffset + chunk * kChunkScaleBytes + g * 4) =
        first.Scale(block) | second.Scale(block) << 8 | first.Scale(block + 1) << 16 |
        second.Scale(block + 1) << 24;
  }
  if (group == 0 && chunk == 0 && t == 0) {
    auto* trailer = reinterpret_cast<uint32_t*>(tile_out + TileBytes(raw.cols) - kTrailerBytes);
    trailer[g] = PackTrailer(first.valid ? raw.bias[first.row] : 0, first.shift);
    trailer[g + 8] = PackTrailer(second.valid ? raw.bias[second.row] : 0, second.shift);
  }
}

// Block: 16 rows x 16 columns of one tile.
__global__ void RepackDenseKernel(RawDense raw, std::byte* out) {
  __shared__ uint16_t square[16][17];
  const int64_t tile = blockIdx.x;
  const int64_t col = int64_t{blockIdx.y} * 16;
  const int x = threadIdx.x % 16;
  const int y = threadIdx.x / 16;
  const int64_t row = SourceRow(tile, x, raw.gate_up);
  square[y][x] = row < raw.rows && col + y < raw.cols ? raw.values[(col + y) * raw.rows + row] : 0;
  __syncthreads();
  std::byte* tile_out = out + tile * DenseTileBytes(raw.cols);
  if (col + x < raw.cols) {
    reinterpret_cast<uint16_t*>(tile_out)[y * raw.cols + col + x] = square[x][y];
  }
  if (blockIdx.y == 0 && y == 0) {
    reinterpret_cast<uint32_t*>(tile_out + DenseTileBytes(raw.cols) - kTrailerBytes)[x] =
        PackTrailer(row < raw.rows ? raw.bias[row] : 0, 0);
  }
}

}  // namespace

void RepackMxfp4(const RawMxfp4& raw, void* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(PaddedTiles(raw.rows)),
                  static_cast<unsigned>(NumGroups(raw.cols)));
  RepackMxfp4Kernel<<<grid, kThreads, 0, stream>>>(raw, static_cast<std::byte*>(out));
}

void RepackDense(const RawDense& raw, void* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(PaddedTiles(raw.rows)),
                  static_cast<unsigned>((raw.cols + 15) / 16));
  RepackDenseKernel<<<grid, 256, 0, stream>>>(raw, static_cast<std::byte*>(out));
}

}  // namespace conclave::kernels::cuda
