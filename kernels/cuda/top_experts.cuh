#ifndef CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_
#define CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_

#include <cstdint>

#include "kernels/cuda/bf16.cuh"

namespace conclave::kernels::cuda {

// Logits as unsigned numbers of the same order, from 1; not-a-number is 1. -0 counts as +0.
__device__ inline uint32_t LogitOrder(float logit) {
  if (logit != logit) return 1;
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One row's choice by one warp; the contract is router.h's. `logits` [experts] in shared or global
// memory, written before a barrier; at most kHeld * 32 experts and 32 choices. forced: this row's,
// or null. Not `used`: no expert.
template <int kHeld>
__device__ void TopExperts(const float* logits, const int32_t* forced, bool used, int experts,
                           int k, int32_t* expert_ids, float* weights) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t order[kHeld];  // of expert lane + 32 i; 0: none, or chosen
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int e = lane + 32 * i;
    order[i] = e < experts ? LogitOrder(logits[e]) : 0;
  }
  const int wanted = forced != nullptr && lane < k ? forced[lane] : -1;
  int chosen = 0;  // choice `lane`
  for (int j = 0; j < k; ++j) {
    uint32_t best = order[0];
#pragma unroll
    for (int i = 1; i < kHeld; ++i) best = max(best, order[i]);
    best = __reduce_max_sync(kAll, best);
    uint32_t id = kAll;
#pragma unroll
    for (int i = kHeld - 1; i >= 0; --i) {
      if (order[i] == best) id = static_cast<uint32_t>(lane + 32 * i);
    }
    id = __reduce_min_sync(kAll, id);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (id == static_cast<uint32_t>(lane + 32 * i)) order[i] = 0;
    }
    if (lane == j) chosen = static_cast<int>(id);
  }
  if (wanted >= 0) chosen = wanted;
  const float logit = lane < k ? logits[chosen] : -INFINITY;
  float maximum = logit;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kAll, maximum, offset));
  }
  const float power = lane < k ? expf(logit - maximum) : 0;
  const float sum = WarpSum(power);
  if (lane >= k) return;
  expert_ids[lane] = used ? chosen : -1;
  weights[lane] = used ? power / sum : 0;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_
