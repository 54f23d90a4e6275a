#ifndef CONCLAVE_KERNELS_CUDA_NORM_H_
#define CONCLAVE_KERNELS_CUDA_NORM_H_

// RMSNorm over many rows: out = bf16((x * r) * weight), r = 1 / sqrt(mean(x^2) + epsilon), all in
// float32 before the one rounding. Hidden sizes are multiples of 32, rows 16-byte aligned.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace conclave::kernels::cuda {

// out[i] = RMSNorm(x[gather[i]]), i < rows; `gather` in device memory, null: the rows in order.
void NormRows(const __nv_bfloat16* x, const int32_t* gather, const __nv_bfloat16* weight,
              float epsilon, int rows, int64_t hidden, __nv_bfloat16* out, cudaStream_t stream);

// x += partial, rounded once; normed = RMSNorm(x).
void ResidualNormRows(const float* partial, const __nv_bfloat16* weight, float epsilon, int rows,
                      int64_t hidden, __nv_bfloat16* x, __nv_bfloat16* normed, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_NORM_H_
