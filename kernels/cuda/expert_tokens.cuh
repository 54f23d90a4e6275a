#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_TOKENS_CUH_
#define CONCLAVE_KERNELS_CUDA_EXPERT_TOKENS_CUH_

// Reading TokenArgs on the device, and the activation function.

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

// Number of the first copy of every source; [num_sources] is the number of all. Shared memory.
struct SourceBegins {
  int32_t begin[kMaxSources + 1];
};

// By one warp, all lanes. Counts are cut to what the buffers hold: they may have come over a wire.
__device__ inline void ReadSources(const TokenArgs& tokens, int lane, SourceBegins& sources) {
  int32_t before = 0;
  for (int first = 0; first < tokens.num_sources; first += 32) {
    const int source = first + lane;
    int32_t count = 0;
    if (source < tokens.num_sources) {
      count = *reinterpret_cast<const int32_t*>(tokens.counts + source * tokens.counts_stride);
      count = min(max(count, 0), tokens.max_copies);
    }
    int32_t sum = count;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
      if (lane >= offset) sum = min(sum + other, tokens.max_copies);
    }
    if (source < tokens.num_sources) {
      sources.begin[source + 1] = min(before + sum, tokens.max_copies);
    }
    before = min(before + __shfl_sync(0xFFFFFFFFu, sum, 31), tokens.max_copies);
  }
  if (lane == 0) sources.begin[0] = 0;
}

struct CopyPlace {
  int32_t slot;
  int32_t output_row;
};

__device__ inline CopyPlace PlaceOfCopy(const TokenArgs& tokens, const SourceBegins& sources,
                                        int32_t copy) {
  int source = 0;
  while (source + 1 < tokens.num_sources && copy >= sources.begin[source + 1]) ++source;
  const int32_t index = copy - sources.begin[source];
  return {tokens.first_slot[source] + index, tokens.first_output[source] + index};
}

__device__ inline int32_t ExpertId(const TokenArgs& tokens, int32_t slot, int choice) {
  return reinterpret_cast<const int32_t*>(tokens.expert_ids +
                                          slot * tokens.expert_ids_stride)[choice];
}

__device__ inline float RoutingWeight(const TokenArgs& tokens, int32_t slot, int choice) {
  return reinterpret_cast<const float*>(tokens.weights + slot * tokens.weights_stride)[choice];
}

// -1 for an expert that is not computed here.
__device__ inline int32_t LocalExpert(const TokenArgs& tokens, int32_t id) {
  if (id < 0 || id >= tokens.num_experts) return -1;
  const int32_t local = tokens.local_index[id];
  return local < tokens.num_local ? local : -1;
}

__device__ inline float SwiGlu(float gate, float up, const SwiGluArgs& args) {
  gate = fminf(gate, args.limit);
  up = fminf(fmaxf(up, -args.limit), args.limit);
  return (up + 1) * __fdividef(gate, 1 + __expf(-args.alpha * gate));
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_TOKENS_CUH_
