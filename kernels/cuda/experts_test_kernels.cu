#include "kernels/cuda/experts_test_kernels.h"

#include "kernels/cuda/mxfp4_decode.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ double Bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// From the definition of the format alone.
__device__ double Weight(const ReferenceMatrix& matrix, int64_t expert, int64_t row, int64_t col) {
  if (matrix.dense != nullptr) {
    return Bf16(matrix.dense[(expert * matrix.cols + col) * matrix.rows + row]);
  }
  const double magnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const int64_t at = (expert * matrix.rows + row) * matrix.cols + col;
  const int nibble = matrix.blocks[at / 2] >> (at % 2 * 4) & 15;
  const double value = ldexp(magnitudes[nibble & 7], int{matrix.scales[at / 32]} - 127);
  return nibble & 8 ? -value : value;
}

__global__ void ReferenceProductKernel(ReferenceMatrix matrix, const int32_t* expert,
                                       const uint16_t* const* input, double* out) {
  const int pair = blockIdx.y;
  const int64_t row = blockIdx.x * kThreads + threadIdx.x;
  if (expert[pair] < 0 || row >= matrix.rows) return;
  double sum = Bf16(matrix.bias[expert[pair] * matrix.rows + row]);
  for (int64_t col = 0; col < matrix.cols; ++col) {
    sum += Weight(matrix, expert[pair], row, col) * Bf16(input[pair][col]);
  }
  out[pair * matrix.rows + row] = sum;
}

__global__ void UnpackKernel(MatrixArgs matrix, float* out) {
  const int64_t tile = blockIdx.x;
  const int chunk = blockIdx.y;
  const int lane = threadIdx.x;
  const std::byte* data = matrix.data + tile * matrix.tile_bytes;
  const std::byte* group = data + chunk / kGroupChunks * kGroupBytes;
  const auto* trailer = reinterpret_cast<const uint32_t*>(data + matrix.groups * kGroupBytes);
  const int within = chunk % kGroupChunks;
  uint32_t a[4][4];
  DecodeChunk(*reinterpret_cast<const uint4*>(group + within * kChunkBytes + lane * 16),
              *reinterpret_cast<const uint32_t*>(group + kScalesOffset + within * kChunkScaleBytes +
                                                 lane / 4 * 4),
              a);
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8;
      const int col = chunk * kChunkCols + step * 16 + i / 2 * 8 + lane % 4 * 2;
      if (col >= matrix.cols) continue;
      const float factor = TrailerFactor(trailer[row]);
      float* to = out + (tile * kTileRows + row) * matrix.cols + col;
      to[0] = __uint_as_float(a[step][i] << 16) * factor;
      to[1] = __uint_as_float(a[step][i] & 0xFFFF0000u) * factor;
    }
  }
}

}  // namespace

void ReferenceProduct(const ReferenceMatrix& matrix, const int32_t* expert,
                      const uint16_t* const* input, int pairs, double* out) {
  const dim3 grid(static_cast<unsigned>((matrix.rows + kThreads - 1) / kThreads), pairs);
  ReferenceProductKernel<<<grid, kThreads>>>(matrix, expert, input, out);
  cudaDeviceSynchronize();
}

void UnpackMatrix(const MatrixArgs& matrix, int tiles, float* out) {
  UnpackKernel<<<dim3(tiles, matrix.groups * kGroupChunks), 32>>>(matrix, out);
  cudaDeviceSynchronize();
}

}  // namespace conclave::kernels::cuda
