#ifndef CONCLAVE_KERNELS_CUDA_BF16_CUH_
#define CONCLAVE_KERNELS_CUDA_BF16_CUH_

// Eight bf16 values as one 16-byte vector.

#include <cuda_bf16.h>

#include <cstdint>

namespace conclave::kernels::cuda {

inline constexpr int kVec = 8;  // bf16 values of a uint4

__device__ inline void Unpack(const uint4& packed, float (&values)[kVec]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

// Rounds to nearest, ties to even.
__device__ inline uint4 Pack(const float (&values)[kVec]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  return {words[0], words[1], words[2], words[3]};
}

__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void Store(float value, float* to) { *to = value; }
__device__ inline void Store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// Sum over the warp, the same in every lane, in a fixed order.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  return value;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_BF16_CUH_
