#ifndef CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_
#define CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_

#include <cstdint>

namespace conclave::kernels::cuda {

// Orders logits as unsigned numbers: falling logit, then rising id; not-a-number below everything.
// -0 counts as +0.
__device__ inline uint64_t ExpertKey(float logit, int id) {
  uint32_t order = 0;
  if (logit == logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  return uint64_t{order} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

__device__ inline uint64_t WarpMax(uint64_t value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// One row's choice by one warp; the contract is router.h's. `logits` [experts] in shared or global
// memory, written before by this warp or before a barrier. forced: this row's, or null.
__device__ inline void TopExperts(const float* logits, const int32_t* forced, int experts, int k,
                                  int32_t* expert_ids, float* weights) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // The best that comes after the last choice: no marks, so any number of experts does.
  uint64_t last = ~uint64_t{0};
  float maximum = -INFINITY;
  for (int j = 0; j < k; ++j) {
    uint64_t best = 0;
    for (int e = lane; e < experts; e += 32) {
      const uint64_t key = ExpertKey(logits[e], e);
      if (key < last && key > best) best = key;
    }
    last = WarpMax(best);
    int id = static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(last));
    if (forced != nullptr && forced[j] >= 0) id = forced[j];
    if (lane == 0) expert_ids[j] = id;
    maximum = fmaxf(maximum, logits[id]);
  }
  __syncwarp();
  if (lane != 0) return;
  float sum = 0;
  for (int j = 0; j < k; ++j) sum += weights[j] = expf(logits[expert_ids[j]] - maximum);
  for (int j = 0; j < k; ++j) weights[j] /= sum;
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_TOP_EXPERTS_CUH_
