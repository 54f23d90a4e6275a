#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_KERNELS_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_KERNELS_H_

// The launchers behind Attention(). Private to attention.

#include <cuda_runtime.h>

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/attention_plan.h"

namespace conclave::kernels::cuda {

// Runs of one row; the plan's decode lists.
void LaunchDecode(const AttentionParams& params, const AttentionTuning& tuning,
                  cudaStream_t stream);

// Runs of more rows; the plan's prefill lists.
void LaunchPrefill(const AttentionParams& params, cudaStream_t stream);

// Any shape and all rows; needs no plan.
void LaunchGeneric(const AttentionParams& params, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_KERNELS_H_
