#include "worker/transformer_buffers.h"

#include <numeric>
#include <utility>

#include "base/status_macros.h"

namespace conclave::worker {

using kernels::DType;

absl::StatusOr<kernels::Tensor> AllocateTensor(kernels::Ops& ops, DType dtype, int64_t rows,
                                               int64_t cols, std::vector<kernels::Buffer>& memory) {
  ASSIGN_OR_RETURN(kernels::Buffer buffer, ops.Allocate(rows * cols * kernels::SizeOf(dtype)));
  memory.push_back(std::move(buffer));
  return memory.back().AsTensor(dtype, rows, cols);
}

int64_t TotalBytes(std::span<const kernels::Buffer> buffers) {
  int64_t bytes = 0;
  for (const kernels::Buffer& buffer : buffers) bytes += buffer.bytes;
  return bytes;
}

absl::StatusOr<TransformerBuffers> TransformerBuffers::Create(const model::Config& config,
                                                              const TransformerSizes& sizes,
                                                              kernels::Ops& ops) {
  TransformerBuffers out;
  const auto make = [&](DType dtype, int64_t rows, int64_t cols) {
    return AllocateTensor(ops, dtype, rows, cols, out.memory);
  };
  const DType activation = ops.activation_dtype();
  const DType partial = ops.partial_dtype();
  const int64_t rows = sizes.max_rows;
  const int64_t hidden = config.hidden_size;
  const int64_t head_dim = config.head_dim;
  const int64_t k = config.experts_per_token;
  ASSIGN_OR_RETURN(out.x, make(activation, rows, hidden));
  ASSIGN_OR_RETURN(out.qkv, make(activation, rows, (sizes.heads + 2 * sizes.kv_heads) * head_dim));
  ASSIGN_OR_RETURN(out.attention, make(activation, rows, sizes.heads * head_dim));
  ASSIGN_OR_RETURN(out.o_partial, make(partial, rows, hidden));
  ASSIGN_OR_RETURN(out.o_share, make(partial, sizes.max_share, hidden));
  ASSIGN_OR_RETURN(out.normed, make(activation, rows, hidden));
  ASSIGN_OR_RETURN(out.routing.expert_ids, make(DType::kI32, rows, k));
  ASSIGN_OR_RETURN(out.routing.weights, make(DType::kF32, rows, k));
  ASSIGN_OR_RETURN(out.expert_hidden,
                   make(activation, sizes.expert_rows * k, config.intermediate_size));
  ASSIGN_OR_RETURN(out.expert_sum, make(partial, sizes.expert_rows, hidden));

  std::vector<int32_t> counts(rows + 1);
  std::iota(counts.begin(), counts.end(), 0);
  ASSIGN_OR_RETURN(out.row_counts, make(DType::kI32, rows + 1, 1));
  ops.Write(out.row_counts, counts.data());
  return out;
}

}  // namespace conclave::worker
