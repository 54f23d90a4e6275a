#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_TILE_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_TILE_H_

// MXFP4 experts for many tokens an expert: wgmma over tiles of 192 weight rows x up to 160 tokens.
// Any size that is a multiple of 32.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

inline constexpr int kMaxTileExperts = 1024;  // local

// `groups` filled before on the stream. activations bf16 [output row * k + j, tiles * 8]; see
// Ops::ExpertGateUp. Hidden vectors 16-byte aligned.
void TileGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const GroupArgs& groups,
                const SwiGluArgs& swiglu, __nv_bfloat16* activations, cudaStream_t stream);

// y [pair, hidden]: the result of every pair with a local expert.
void TileDown(const TokenArgs& tokens, const MatrixArgs& down, const GroupArgs& groups,
              const __nv_bfloat16* activations, int hidden, const PartialArgs& y,
              cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_TILE_H_
