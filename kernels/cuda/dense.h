#ifndef CONCLAVE_KERNELS_CUDA_DENSE_H_
#define CONCLAVE_KERNELS_CUDA_DENSE_H_

// Dense bf16 products out[t, n] = bias[n] + sum_k norm(x)[t, k] * weight[n, k], float32 inside:
// what is multiplied, shared by the kernels that do it.
//
//   rows t         kernel                                      why
//   1..16          StreamDense: weights read once through      bound by the weights' bytes
//                  shared memory, RMSNorm on the way
//   17..           NormRows, then cuBLASLt (dense_lt.h)        bound by arithmetic from ~250 rows
//   any            GenericDense                                k or an address that no fast path
//                                                              takes (not a multiple of 32 values)

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

// Weights of consecutive output columns. A product has at most kMaxDenseSegments.
struct DenseSegment {
  const __nv_bfloat16* weight = nullptr;  // [rows, cols], row_stride values from row to row
  const __nv_bfloat16* bias = nullptr;    // [rows] or null
  const float* bias_f32 = nullptr;        // the same values; null when bias is
  int64_t rows = 0;
  int64_t row_stride = 0;
};
inline constexpr int kMaxDenseSegments = 3;

struct DenseInput {
  const __nv_bfloat16* x = nullptr;  // [*, cols], dense
  int rows = 0;
  int64_t cols = 0;
  const int32_t* gather = nullptr;      // [rows] device memory: rows of x; null: 0, 1, ...
  const __nv_bfloat16* norm = nullptr;  // [cols] RMSNorm's weight; null: x as it is
  float epsilon = 0;
};

// bf16 or f32 [rows, sum of the segments' rows].
struct DenseOutput {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t row_stride = 0;
};

inline constexpr int kStreamRows = 16;

// True when StreamDense takes these addresses and sizes: cols and strides multiples of 32 values,
// 16-byte aligned, the rows' inputs within shared memory.
bool CanStream(std::span<const DenseSegment> segments, const DenseInput& input);

// input.rows <= kStreamRows. Started with programmatic dependent launch: weights, biases and the
// norm's weight must have been complete before the kernel that precedes this one on the stream.
void StreamDense(std::span<const DenseSegment> segments, const DenseInput& input,
                 const DenseOutput& output, cudaStream_t stream);

// Any size and alignment, without norm; slow.
void GenericDense(std::span<const DenseSegment> segments, const DenseInput& input,
                  const DenseOutput& output, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DENSE_H_
