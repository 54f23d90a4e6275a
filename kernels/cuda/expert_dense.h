#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_DENSE_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_DENSE_H_

// Experts with bf16 weights: a plain tiled product on mma.sync, right at any size that is a
// multiple of 32. Matrices as RepackDense makes them.

#include <cuda_runtime.h>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

// As TileGateUp and TileDown.
void DenseGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const GroupArgs& groups,
                 const SwiGluArgs& swiglu, __nv_bfloat16* activations, cudaStream_t stream);
void DenseDown(const TokenArgs& tokens, const MatrixArgs& down, const GroupArgs& groups,
               const __nv_bfloat16* activations, int hidden, const PartialArgs& y,
               cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_DENSE_H_
