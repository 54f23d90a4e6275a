#include "kernels/cuda/residual.h"

#include <algorithm>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ void Add(float (&sum)[kVec], const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  const float add[kVec] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] += add[i];
}

__global__ void __launch_bounds__(kThreads)
    AddKernel(const float* partial, int64_t vectors, uint4* x) {
  PdlTrigger();
  PdlWait();
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= vectors) return;
  float values[kVec];
  Unpack(x[at], values);
  Add(values, partial + at * kVec);
  x[at] = Pack(values);
}

// A block per row and kThreads vectors of it.
__global__ void __launch_bounds__(kThreads)
    CombineKernel(const float* partials, const __grid_constant__ FirstRows first,
                  const int32_t* send_index, int world, int vectors, uint4* x) {
  PdlTrigger();
  PdlWait();
  const int64_t row = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (at >= vectors) return;
  float sum[kVec] = {};
  for (int d = 0; d < world; ++d) {
    const int32_t index = send_index[row * world + d];
    if (index >= 0) Add(sum, partials + ((int64_t{first.row[d]} + index) * vectors + at) * kVec);
  }
  float values[kVec];
  Unpack(x[row * vectors + at], values);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] += sum[i];
  x[row * vectors + at] = Pack(values);
}

}  // namespace

void AddResidual(const float* partial, int64_t size, __nv_bfloat16* x, cudaStream_t stream) {
  const int64_t vectors = size / kVec;
  if (vectors == 0) return;
  const auto blocks = static_cast<unsigned>((vectors + kThreads - 1) / kThreads);
  LaunchDependent(AddKernel, {dim3(blocks), dim3(kThreads)}, stream, partial, vectors,
                  reinterpret_cast<uint4*>(x));
}

void CombineResidual(const float* partials, const FirstRows& first, const int32_t* send_index,
                     int world, int rows, int64_t hidden, __nv_bfloat16* x, cudaStream_t stream) {
  if (rows == 0) return;
  const int vectors = static_cast<int>(hidden / kVec);
  LaunchDependent(CombineKernel, {dim3(rows, (vectors + kThreads - 1) / kThreads), dim3(kThreads)},
                  stream, partials, first, send_index, world, vectors, reinterpret_cast<uint4*>(x));
}

}  // namespace conclave::kernels::cuda
