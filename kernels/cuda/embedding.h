#ifndef CONCLAVE_KERNELS_CUDA_EMBEDDING_H_
#define CONCLAVE_KERNELS_CUDA_EMBEDDING_H_

// Tokens to hidden states, and the table of tokens sampled last that feeds later steps.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace conclave::kernels::cuda {

// The rows of the embedding that this rank holds, ids [first_id, first_id + rows).
struct EmbeddingShard {
  const __nv_bfloat16* data = nullptr;  // [rows, hidden], row_stride values from row to row
  int64_t rows = 0;
  int64_t row_stride = 0;
  int32_t first_id = 0;
};

// x[t] = the row of ids[t], or of last_sampled[-1 - ids[t]] where that is negative; 0 if another
// rank holds it. hidden and row_stride are multiples of 8, pointers 16-byte aligned.
void Embed(const EmbeddingShard& shard, const int32_t* ids, const int32_t* last_sampled, int rows,
           int64_t hidden, __nv_bfloat16* x, cudaStream_t stream);

// last_sampled[slots[i]] = tokens[i], i < count, where slots[i] is not negative. All in device
// memory; slots differ.
void StoreSampled(const int32_t* tokens, const int32_t* slots, int count, int32_t* last_sampled,
                  cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_EMBEDDING_H_
