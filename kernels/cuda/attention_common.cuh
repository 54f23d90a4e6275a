#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_COMMON_CUH_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_COMMON_CUH_

// What the attention kernels share. Softmax runs in base 2: with logits s = q . k and
// c = log2(e) / sqrt(D), p = exp2(s c - m c).
//
// The running maximum starts at the sink's logit and never sees an empty range. The sink's own
// weight, exp2(sink - m), is added once, when the pieces of a tile are put together.

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/attention_item.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/step_view.h"

namespace conclave::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr float kLog2E = 1.4426950408889634f;

// By value to every attention kernel.
struct AttentionParams {
  StepView view;
  AttentionShape shape;
  KvPages cache;
  const __nv_bfloat16* sinks;
  const __nv_bfloat16* qkv;
  __nv_bfloat16* out;
  AttentionWorkspace workspace;
  float scale;  // 1 / sqrt(D)
  // Not null: qkv is as it was projected, and this step's keys and values are not in the cache yet.
  const float2* angles;  // RopeTable
};

__device__ inline float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// A sink of minus infinity means none.
__device__ inline float SinkLog2(const AttentionParams& p, int head) {
  constexpr float kLeast = -1e30f;
  return fmaxf(__bfloat162float(p.sinks[head]) * kLog2E, kLeast);
}

// Positions [first, end) that a row at `position` sees.
__device__ inline int FirstSeen(const AttentionParams& p, int position) {
  return p.cache.sliding ? max(0, position - p.shape.window + 1) : 0;
}

__device__ inline AttentionItem LoadItem(const AttentionItem* item) {
  AttentionItem result;
  auto* to = reinterpret_cast<uint4*>(&result);
  const auto* from = reinterpret_cast<const uint4*>(item);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(AttentionItem) / sizeof(uint4)); ++i) to[i] = from[i];
  return result;
}

__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// The larger / the sum of the four lanes of a quad, in each of them.
__device__ inline float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ inline float QuadSum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// Counts this block in at `arrivals` after its partial result is written, and says whether it is
// the last of `pieces`; it then leaves the counter at 0 and sees what the others wrote. To be
// called by one thread, between barriers of those that write and read.
__device__ inline bool ArriveLast(int32_t* arrivals, int pieces) {
  __threadfence();
  const bool last = atomicAdd(arrivals, 1) == pieces - 1;
  if (last) *arrivals = 0;
  __threadfence();
  return last;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_COMMON_CUH_
