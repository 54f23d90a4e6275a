// One block per row. The row stays in registers between the sum of squares and the scaling when it
// has at most kThreads * kHeld vectors (16,384 values), and is read again beyond that.

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 8;  // vectors of a thread that stay in registers

// The block's sum, in a fixed order. `shared` has a float per warp.
__device__ float BlockSum(float value, float* shared) {
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += shared[warp];
  return sum;
}

__device__ uint4 AddPartial(const uint4& x, const float* partial) {
  float values[kVec];
  Unpack(x, values);
  const float4 low = reinterpret_cast<const float4*>(partial)[0];
  const float4 high = reinterpret_cast<const float4*>(partial)[1];
  const float add[kVec] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] += add[i];
  return Pack(values);
}

__device__ float SumSquares(const uint4& x) {
  float values[kVec];
  Unpack(x, values);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += values[i] * values[i];
  return sum;
}

__device__ uint4 Scale(const uint4& x, float scale, const uint4& weight) {
  float values[kVec];
  float weights[kVec];
  Unpack(x, values);
  Unpack(weight, weights);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = values[i] * scale * weights[i];
  return Pack(values);
}

// x [*, vectors], partial [rows, vectors * 8] if kResidual. x is written if kResidual.
template <bool kResidual>
__global__ void __launch_bounds__(kThreads)
    NormKernel(uint4* x, const int32_t* gather, const float* partial, const uint4* weight,
               float epsilon, int vectors, uint4* out) {
  __shared__ float shared[kThreads / 32];
  PdlTrigger();
  PdlWait();
  const int64_t row = blockIdx.x;
  x += (gather == nullptr ? row : gather[row]) * vectors;
  out += row * vectors;
  if (kResidual) partial += row * vectors * kVec;

  uint4 held[kHeld];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = threadIdx.x + i * kThreads;
    if (at >= vectors) break;
    held[i] = kResidual ? AddPartial(x[at], partial + at * kVec) : x[at];
    sum += SumSquares(held[i]);
  }
  for (int at = threadIdx.x + kHeld * kThreads; at < vectors; at += kThreads) {
    sum += SumSquares(kResidual ? AddPartial(x[at], partial + at * kVec) : x[at]);
  }
  sum = BlockSum(sum, shared);
  const float scale = rsqrtf(sum / static_cast<float>(vectors * kVec) + epsilon);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = threadIdx.x + i * kThreads;
    if (at >= vectors) break;
    if (kResidual) x[at] = held[i];
    out[at] = Scale(held[i], scale, weight[at]);
  }
  for (int at = threadIdx.x + kHeld * kThreads; at < vectors; at += kThreads) {
    const uint4 value = kResidual ? AddPartial(x[at], partial + at * kVec) : x[at];
    if (kResidual) x[at] = value;
    out[at] = Scale(value, scale, weight[at]);
  }
}

}  // namespace

void NormRows(const __nv_bfloat16* x, const int32_t* gather, const __nv_bfloat16* weight,
              float epsilon, int rows, int64_t hidden, __nv_bfloat16* out, cudaStream_t stream) {
  if (rows == 0) return;
  LaunchDependent(NormKernel<false>, {dim3(rows), dim3(kThreads)}, stream,
                  reinterpret_cast<uint4*>(const_cast<__nv_bfloat16*>(x)), gather, nullptr,
                  reinterpret_cast<const uint4*>(weight), epsilon, static_cast<int>(hidden / kVec),
                  reinterpret_cast<uint4*>(out));
}

void ResidualNormRows(const float* partial, const __nv_bfloat16* weight, float epsilon, int rows,
                      int64_t hidden, __nv_bfloat16* x, __nv_bfloat16* normed,
                      cudaStream_t stream) {
  if (rows == 0) return;
  LaunchDependent(NormKernel<true>, {dim3(rows), dim3(kThreads)}, stream,
                  reinterpret_cast<uint4*>(x), nullptr, partial,
                  reinterpret_cast<const uint4*>(weight), epsilon, static_cast<int>(hidden / kVec),
                  reinterpret_cast<uint4*>(normed));
}

}  // namespace conclave::kernels::cuda
