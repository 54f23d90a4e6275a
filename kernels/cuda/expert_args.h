#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_ARGS_H_
#define CONCLAVE_KERNELS_CUDA_EXPERT_ARGS_H_

// What the expert kernels get as parameters. A copy is one token's hidden vector at this rank; a
// pair is (copy, choice j < k), numbered copy * k + j with copies counted by source, then index.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace conclave::kernels::cuda {

inline constexpr int kMaxSources = 128;

// ExpertTokens (kernels/ops.h) by value.
struct TokenArgs {
  int num_sources;
  int max_copies;
  int k;            // experts per token
  int num_experts;  // global
  int num_local;
  const std::byte* counts;
  int64_t counts_stride;
  const std::byte* hidden;
  int64_t hidden_stride;
  const std::byte* expert_ids;
  int64_t expert_ids_stride;
  const std::byte* weights;
  int64_t weights_stride;
  const int32_t* local_index;
  uint64_t* load;  // [num_local] pairs computed so far; null: not counted
  int32_t first_slot[kMaxSources];
  int32_t first_output[kMaxSources];
};

// One of an expert's two matrices, of all local experts, packed.
struct MatrixArgs {
  const std::byte* data;
  int64_t expert_bytes;
  int64_t tile_bytes;
  int tiles;   // of 16 rows, without padding
  int groups;  // of 320 columns; 0 for dense weights
  int cols;
};

struct SwiGluArgs {
  float limit;
  float alpha;
};

// Pairs by local expert, then ascending: device memory, filled by GroupPairs.
struct GroupArgs {
  int32_t* offsets;  // [num_local + 1]
  int32_t* slot;     // [max pairs] the copy's slot
  int32_t* out_row;  // [max pairs] row of the activations: output row * k + j
  int32_t* pair;     // [max pairs] pair number
};

// Results of Down before they are added up: y[pair, H], without the routing weight.
struct PartialArgs {
  void* rows;
  bool bf16;  // else float32
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_ARGS_H_
