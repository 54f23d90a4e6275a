#ifndef CONCLAVE_KERNELS_CUDA_MXFP4_REPACK_H_
#define CONCLAVE_KERNELS_CUDA_MXFP4_REPACK_H_

// Expert matrices from the checkpoint's layouts to those of the kernels, on the device, once at
// load.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/mxfp4_layout.h"

namespace conclave::kernels::cuda {

// A matrix as the checkpoint has it, copied to device memory.
struct RawMxfp4 {
  const uint8_t* blocks = nullptr;  // [rows, cols / 32, 16]
  const uint8_t* scales = nullptr;  // [rows, cols / 32], none above model::kMaxMxfp4Scale
  const uint16_t* bias = nullptr;   // [rows] bf16
  int64_t rows = 0;
  int64_t cols = 0;  // multiple of 32
  bool gate_up = false;
};

// Fills MatrixBytes(rows, cols) at `out` (16-byte aligned).
void RepackMxfp4(const RawMxfp4& raw, void* out, cudaStream_t stream);

struct RawDense {
  const uint16_t* values = nullptr;  // bf16 [cols, rows]: the transposed layout of save_pretrained
  const uint16_t* bias = nullptr;    // [rows] bf16
  int64_t rows = 0;
  int64_t cols = 0;
  bool gate_up = false;
};

// Dense experts: tiles of 16 rows in the order of SourceRow, each | 16 rows of bf16 [cols] |
// trailer as in mxfp4_layout.h |, zero tiles up to a multiple of kTileMultiple at the end.
constexpr int64_t DenseTileBytes(int64_t cols) { return kTileRows * cols * 2 + kTrailerBytes; }
constexpr int64_t DenseMatrixBytes(int64_t rows, int64_t cols) {
  return PaddedTiles(rows) * DenseTileBytes(cols);
}
void RepackDense(const RawDense& raw, void* out, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_MXFP4_REPACK_H_
