#ifndef CONCLAVE_KERNELS_CUDA_ROPE_H_
#define CONCLAVE_KERNELS_CUDA_ROPE_H_

// Rotary embedding and the write of keys and values to the paged cache.
//
//   RopeTable table{memory, positions, head_dim / 2};  // RopeTableBytes() of device memory
//   FillRopeTable(frequencies, factor, table, stream); // once
//   RopeAndCacheWrite(view, shape, table, cache, qkv, stream);  // once a layer
//
// All launchers enqueue on `stream`, never wait, and leave a launch failure for cudaGetLastError.
// Head sizes that are multiples of 16 use 16-byte accesses, other even ones single values.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/step_view.h"

namespace conclave::kernels::cuda {

inline constexpr int kKvBlockTokens = 16;

// Heads of this tp rank. A row of qkv is | q of every head | k | v |.
struct AttentionShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int window = 0;  // keys that a row of a sliding layer sees, its own included
  constexpr int row_values() const { return (heads + 2 * kv_heads) * head_dim; }
};

// One layer's cache: [blocks, kv_heads, kKvBlockTokens, head_dim] each, 16-byte aligned.
struct KvPages {
  __nv_bfloat16* keys = nullptr;
  __nv_bfloat16* values = nullptr;
  int64_t blocks = 0;
  bool sliding = false;
};

// (cos, sin) times the attention factor, [positions, half] in device memory.
struct RopeTable {
  float2* angles = nullptr;
  int positions = 0;
  int half = 0;
};
int64_t RopeTableBytes(int positions, int head_dim);

// `inverse_frequencies` f32 [half], device memory: model::RopeInverseFrequencies. The angle is the
// float32 product of position and frequency, as the references compute it.
void FillRopeTable(const float* inverse_frequencies, float attention_factor, const RopeTable& table,
                   cudaStream_t stream);

// Rotates q and k of every row of the step in place and writes its k and v to the cache.
// `qkv` [view.rows, shape.row_values()], 16-byte aligned; positions lie in the table.
void RopeAndCacheWrite(const StepView& view, const AttentionShape& shape, const RopeTable& table,
                       const KvPages& cache, __nv_bfloat16* qkv, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ROPE_H_
