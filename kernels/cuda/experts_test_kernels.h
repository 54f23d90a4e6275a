#ifndef CONCLAVE_KERNELS_CUDA_EXPERTS_TEST_KERNELS_H_
#define CONCLAVE_KERNELS_CUDA_EXPERTS_TEST_KERNELS_H_

// What the experts' tests compute on the device. All wait until they are done.

#include <cstdint>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

// Matrices of experts one after the other in device memory, as the checkpoint has them: MXFP4, or
// `dense` [expert][cols, rows].
struct ReferenceMatrix {
  const uint8_t* blocks = nullptr;
  const uint8_t* scales = nullptr;
  const uint16_t* dense = nullptr;
  const uint16_t* bias = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
};

// out[p, rows] = bias + weights of expert[p] times the bf16 row input[p], in float64; nothing for
// pairs with expert[p] < 0. All arrays in device memory.
void ReferenceProduct(const ReferenceMatrix& matrix, const int32_t* expert,
                      const uint16_t* const* input, int pairs, double* out);

// out[row, col] = decoded weight times the factor of its row, rows in the order of the tiles.
void UnpackMatrix(const MatrixArgs& matrix, int tiles, float* out);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERTS_TEST_KERNELS_H_
