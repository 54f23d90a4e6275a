#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_H_

// MXFP4 experts for few tokens an expert, bound by the weights' bytes: every multiprocessor streams
// its share of the weights through shared memory and multiplies on mma.sync.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/expert_args.h"

namespace conclave::kernels::cuda {

inline constexpr int kMaxStreamPairs = 1024;
inline constexpr int kMaxStreamExperts = 256;  // global and so local
inline constexpr int kMaxStreamGroups = 9;     // of 320 columns

// Whether StreamGateUp and StreamDown take these sizes.
bool CanStreamExperts(const TokenArgs& tokens, const MatrixArgs& gate_up, const MatrixArgs& down);

struct StreamOptions {
  int token_blocks = 1;  // tokens of an expert taken at a time, in eights: 1, 2 or 3
  // Of 64 columns, owned by a warp: 3 (15 warps at 2880 columns; needs a multiple of 3 groups, 1 or
  // 2 token blocks; otherwise 5 is taken) or 5 (9 warps).
  int warp_chunks = 5;
  int stages = 4;  // weight tiles in flight for each block
  int blocks_per_multiprocessor = 1;
  // This many blocks take the units of a common share in turn, so that they read neighbouring
  // tiles.
  int interleave = 1;
  // gate_up only: tiles of its share of `down`, taken with the same options, that a block asks the
  // L2 cache to have ready.
  int prefetch = 0;
};

// activations bf16 [output row * k + j, tiles * 8], see Ops::ExpertGateUp. `local_index` must have
// been complete before the kernel that precedes this one on the stream, as weights; the expert ids
// of all max_copies slots of a single source must be readable.
void StreamGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const MatrixArgs& down,
                  const SwiGluArgs& swiglu, __nv_bfloat16* activations,
                  const StreamOptions& options, cudaStream_t stream);

// y float32 [pair, hidden]: the results of every pair with a local expert. Directly after
// StreamGateUp of the same tokens on the stream (what StreamGateUp waited for is complete when this
// kernel starts, so that it reads the tokens and their experts' weights at once).
void StreamDown(const TokenArgs& tokens, const MatrixArgs& down, const __nv_bfloat16* activations,
                int hidden, float* y, const StreamOptions& options, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_H_
