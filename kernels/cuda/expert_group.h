#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_GROUP_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_GROUP_H_

// Sorts the pairs of a step by local expert, and adds up the experts' results by copy.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

inline constexpr int64_t kMaxGroupedPairs = 131072;
inline constexpr int kMaxChoices = 16;

// Fills `groups` for max_copies * k <= kMaxGroupedPairs pairs. One block for each local expert.
void GroupPairs(const TokenArgs& tokens, const GroupArgs& groups, cudaStream_t stream);

// out f32 [rows, hidden]: for every valid copy, at its output row, the sum over its choices with a
// local expert, in ascending global id, of routing weight * y. Zero for a copy without any.
// If x bf16 [rows, hidden] is not null, the sum is added to it, rounded once, and `out` left alone.
// Adds those choices to tokens.load. hidden a multiple of 4. `tokens_complete`: the tokens were
// complete before the kernel that precedes this one on the stream started to let it run, so that
// they are read at once.
void SumPartials(const TokenArgs& tokens, const PartialArgs& y, int hidden, bool tokens_complete,
                 float* out, __nv_bfloat16* x, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_GROUP_H_
