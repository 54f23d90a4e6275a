#ifndef CONCLAVE_KERNELS_CUDA_ROPE_ROTATE_CUH_
#define CONCLAVE_KERNELS_CUDA_ROPE_ROTATE_CUH_

// The rotation of eight pairs at once.

#include "kernels/cuda/bf16.cuh"

namespace conclave::kernels::cuda {

// Values i ... i + 7 of a head and values half + i ...; `pairs`: (cos, sin) of each, two by two.
__device__ inline void RotatePairs(const float4 (&pairs)[kVec / 2], uint4& low, uint4& high) {
  float a[kVec];
  float b[kVec];
  Unpack(low, a);
  Unpack(high, b);
#pragma unroll
  for (int i = 0; i < kVec / 2; ++i) {
    const float4 pair = pairs[i];
    const float a0 = a[2 * i];
    const float a1 = a[2 * i + 1];
    a[2 * i] = a0 * pair.x - b[2 * i] * pair.y;
    b[2 * i] = b[2 * i] * pair.x + a0 * pair.y;
    a[2 * i + 1] = a1 * pair.z - b[2 * i + 1] * pair.w;
    b[2 * i + 1] = b[2 * i + 1] * pair.z + a1 * pair.w;
  }
  low = Pack(a);
  high = Pack(b);
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ROPE_ROTATE_CUH_
