#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_SHARED_CUH_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_SHARED_CUH_

// What the two roles of a prefill block share: sizes, parameters, shared memory. Private to
// attention_prefill.cu, which has the whole picture.

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/attention_wgmma.cuh"

namespace conclave::kernels::cuda::prefill {

inline constexpr int kConsumers = 3;  // warpgroups
inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupRows = kPrefillRows / kConsumers;
inline constexpr int kConsumerThreads = kConsumers * kGroupThreads;
inline constexpr int kThreads = kConsumerThreads + kGroupThreads;
inline constexpr int kConsumerRegisters = 160;
inline constexpr int kProducerRegisters = 32;
inline constexpr int kStages = 4;
inline constexpr int kRowBytes = kFastHeadDim * 2;
inline constexpr int kStepBytes = kPrefillKeys * kRowBytes;
inline constexpr int kBlockBytes = kKvBlockTokens * kRowBytes;
inline constexpr int kBlocksPerStep = kPrefillKeys / kKvBlockTokens;
inline constexpr int kQueryBytes = kGroupRows * kRowBytes;
inline constexpr int kWarpRows = 16;

// Named barriers; 0 is __syncthreads.
inline constexpr int kGroupBarrier = 1;  // + warpgroup
inline constexpr int kConsumersBarrier = kGroupBarrier + kConsumers;

struct PrefillParams {
  CUtensorMap queries;
  CUtensorMap keys;
  CUtensorMap values;
  AttentionParams attention;
  int group_shift;  // log2(heads / kv_heads)
};

struct Work {
  AttentionItem item;
  int kv_head;  // -1: no more
};

struct PrefillShared {
  alignas(1024) char keys[kStages][kStepBytes];
  alignas(1024) char values[kStages][kStepBytes];
  alignas(1024) char queries[2][kConsumers][kQueryBytes];
  alignas(1024) char outputs[kConsumers][kQueryBytes];
  Work work[2];
  uint64_t work_full[2];
  uint64_t work_empty[2];
  uint64_t queries_full[2];
  uint64_t queries_empty[2];
  uint64_t keys_full[kStages];
  uint64_t values_full[kStages];
  uint64_t empty[kStages];
  volatile float written[kConsumerThreads];  // never read
};

// A place in the ring of stages, and the parity of its current round.
struct Stage {
  int index = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

__device__ inline int Steps(const AttentionItem& item) {
  return (item.key_end - item.key_begin + kPrefillKeys - 1) / kPrefillKeys;
}

}  // namespace conclave::kernels::cuda::prefill

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_PREFILL_SHARED_CUH_
