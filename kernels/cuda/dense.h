#ifndef CONCLAVE_KERNELS_CUDA_DENSE_H_
#define CONCLAVE_KERNELS_CUDA_DENSE_H_

// Dense bf16 products out[t, n] = bias[n] + sum_k norm(x)[t, k] * weight[n, k], float32 inside:
// what is multiplied, shared by the kernels that do it.
//
//   rows t   kernel
//   1..8     StreamDense: weights read once through shared memory, RMSNorm on the way
//   9..16    StreamDense where there is no norm, or the weights are so many (lm_head) that the norm
//            of every block does not show
//   more     NormRows, then cuBLASLt (dense_lt.h)
//   any      GenericDense: k or an address that no fast path takes (not a multiple of 32 values)
//
// Measured on one H100 80GB HBM3, microseconds in a graph, StreamDense | norm + cuBLASLt:
// qkv 8 rows 13.8 | 15.5, 16 rows 17.3 | 15.5; o_proj 16 rows 13.1 | 13.1; lm_head 16 rows 414 |
// 422 (17 rows).

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
inline constexpr int kStreamNormRows = 8;
inline constexpr int64_t kManyWeights = int64_t{64} << 20;

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
