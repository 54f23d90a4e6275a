#ifndef CONCLAVE_KERNELS_CUDA_MXFP4_DECODE_CUH_
#define CONCLAVE_KERNELS_CUDA_MXFP4_DECODE_CUH_

// MXFP4 in the layout of mxfp4_layout.h to bf16 operand registers: 1 integer instruction and half a
// multiplication a weight, exact.

#include <cstdint>

#include "kernels/cuda/mxfp4_layout.h"

namespace conclave::kernels::cuda {

__device__ inline uint32_t MultiplyBf16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// Byte `index` of `scales` as a pair of bf16 factors.
template <int index>
__device__ inline uint32_t ScaleFactors(uint32_t scales) {
  return __byte_perm(scales, 0, 0x4440 | index) * 0x00800080u;
}

// One block (32 columns) of rows g and g + 8: a[step][0..3] in the order of MmaBf16's operands.
__device__ inline void DecodeBlock(uint32_t first, uint32_t second, uint32_t first_scale,
                                   uint32_t second_scale, uint32_t (&a0)[4], uint32_t (&a1)[4]) {
  const uint32_t shared =
      (first & kOwnBits) | (__funnelshift_l(second, second, kSharedShift) & ~kOwnBits);
  const auto code = [](uint32_t word, int rotation) {
    return __funnelshift_r(word, word, rotation) & kCodeMask;
  };
  a0[0] = MultiplyBf16x2(first & kCodeMask, first_scale);
  a0[1] = MultiplyBf16x2(second & kCodeMask, second_scale);
  a0[2] = MultiplyBf16x2(code(first, kRotation1), first_scale);
  a0[3] = MultiplyBf16x2(code(second, kRotation1), second_scale);
  a1[0] = MultiplyBf16x2(code(first, kRotation2), first_scale);
  a1[1] = MultiplyBf16x2(code(second, kRotation2), second_scale);
  a1[2] = MultiplyBf16x2(code(shared, kFirstSharedRotation), first_scale);
  a1[3] = MultiplyBf16x2(code(shared, kSecondSharedRotation), second_scale);
}

// A lane's part of a chunk: a[step] for the four steps of 16 columns.
__device__ inline void DecodeChunk(const uint4& words, uint32_t scales, uint32_t (&a)[4][4]) {
  DecodeBlock(words.x, words.y, ScaleFactors<0>(scales), ScaleFactors<1>(scales), a[0], a[1]);
  DecodeBlock(words.z, words.w, ScaleFactors<2>(scales), ScaleFactors<3>(scales), a[2], a[3]);
}

// Of a trailer word.
__device__ inline float TrailerBias(uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float TrailerFactor(uint32_t word) { return __uint_as_float(word & 0xFFFF0000u); }

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_MXFP4_DECODE_CUH_
