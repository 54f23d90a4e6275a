#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_LOAD_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_LOAD_H_

// How often each expert is computed, counted where the tokens are: no count reaches the host before
// somebody asks for the totals.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

inline constexpr int kMaxCountedExperts = 1024;

// Totals in device memory.
struct LoadTotals {
  uint64_t* pairs = nullptr;   // [num_local] token-expert pairs of each local expert
  uint64_t* copies = nullptr;  // [num_sources] copies from each source; null: not counted
};

// Adds the tokens' pairs and copies to the totals. One launch of one block, at most
// kMaxCountedExperts local experts.
void CountExpertLoad(const TokenArgs& tokens, const LoadTotals& totals, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_LOAD_H_
