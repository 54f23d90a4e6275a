#ifndef CONCLAVE_WORKER_TRANSFORMER_BUFFERS_H_
#define CONCLAVE_WORKER_TRANSFORMER_BUFFERS_H_

// The activations of one step on one rank, allocated once for the largest step.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"

namespace conclave::worker {

struct TransformerSizes {
  int max_rows = 0;         // T: rows of a step of the data-parallel group
  int max_share = 0;        // rows of a step that one tp rank dispatches
  int64_t expert_rows = 0;  // output rows of the expert ops, received copies included
  int heads = 0;            // query heads of this tp rank
  int kv_heads = 0;         // KV heads of this tp rank
};

struct TransformerBuffers {
  static absl::StatusOr<TransformerBuffers> Create(const model::Config& config,
                                                   const TransformerSizes& sizes,
                                                   kernels::Ops& ops);

  kernels::Tensor x;              // activation [T, H], the residual stream
  kernels::Tensor qkv;            // activation [T, (heads + 2 kv_heads) * D]
  kernels::Tensor attention;      // activation [T, heads * D]
  kernels::Tensor o_partial;      // partial [T, H]
  kernels::Tensor o_share;        // partial [max_share, H], after the reduce-scatter
  kernels::Tensor normed;         // activation [T, H]
  kernels::Routing routing;       // [T, k]
  kernels::Tensor expert_hidden;  // activation [expert_rows * k, I]
  kernels::Tensor expert_sum;     // partial [expert_rows, H]
  // i32 [T + 1, 1], row i holds i: a count of rows in device memory without a transfer.
  kernels::Tensor row_counts;
  std::vector<kernels::Buffer> memory;
};

// Allocates a matrix and keeps it in `memory`.
absl::StatusOr<kernels::Tensor> AllocateTensor(kernels::Ops& ops, kernels::DType dtype,
                                               int64_t rows, int64_t cols,
                                               std::vector<kernels::Buffer>& memory);

int64_t TotalBytes(std::span<const kernels::Buffer> buffers);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_BUFFERS_H_
