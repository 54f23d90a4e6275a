#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_PLAN_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_PLAN_H_

// How a step's attention is divided. Private to attention.

#include <cuda_runtime.h>

#include "kernels/cuda/attention.h"

namespace conclave::kernels::cuda {

// Whether the tensor-core kernels take this shape.
bool IsFastShape(const AttentionShape& shape);

// Token rows of a prefill item.
inline int PrefillTokens(const AttentionShape& shape) {
  return kPrefillRows / (shape.heads / shape.kv_heads);
}

// Warps of a decode block.
int DecodeWarps(const AttentionTuning& tuning, int runs);

// Pieces into which the decode rows of a step of `runs` runs are divided, if these are fewer.
int DecodePieces(const AttentionShape& shape, const AttentionTuning& tuning, int runs);

// Host-side bounds of the lists' lengths.
int DecodeItems(const AttentionShape& shape, const AttentionTuning& tuning, const StepView& view,
                bool sliding);
int PrefillItems(const AttentionShape& shape, int rows, int runs);

// At most this many pieces of prefill tiles that several items share.
int PrefillPieces(const AttentionShape& shape);

inline constexpr int kMaxPrefillWaves = 2;

// As PlanAttention, for a fast shape.
void LaunchPlan(const AttentionShape& shape, const AttentionTuning& tuning, const StepView& view,
                const AttentionWorkspace& workspace, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_PLAN_H_
