#ifndef CONCLAVE_KERNELS_CUDA_RESIDUAL_H_
#define CONCLAVE_KERNELS_CUDA_RESIDUAL_H_

// Sums into the residual stream: added in float32, rounded to bf16 once. Hidden sizes are multiples
// of 8, pointers 16-byte aligned.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace conclave::kernels::cuda {

// x[i] += partial[i], i < size.
void AddResidual(const float* partial, int64_t size, __nv_bfloat16* x, cudaStream_t stream);

inline constexpr int kMaxWorld = 128;

// first_row of each rank, by value.
struct FirstRows {
  int32_t row[kMaxWorld];
};

// x[t] += sum over d < world, ascending, of partials[first.row[d] + send_index[t, d]] where
// send_index i32 [rows, world] is not negative. partials f32 [*, hidden].
void CombineResidual(const float* partials, const FirstRows& first, const int32_t* send_index,
                     int world, int rows, int64_t hidden, __nv_bfloat16* x, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_RESIDUAL_H_
