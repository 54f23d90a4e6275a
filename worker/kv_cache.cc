#include "worker/kv_cache.h"

#include <utility>

#include "base/status_macros.h"

namespace conclave::worker {

absl::StatusOr<KvCache> KvCache::Create(const model::Config& config, const KvCacheShape& shape,
                                        kernels::Ops& ops) {
  KvCache cache;
  const kernels::DType dtype = ops.activation_dtype();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const bool sliding = config.layer_types[layer] == model::LayerType::kSliding;
    const int64_t blocks = sliding ? shape.sliding_blocks : shape.full_blocks;
    const int64_t rows = blocks * shape.kv_heads * shape.block_tokens;
    const int64_t bytes = rows * config.head_dim * kernels::SizeOf(dtype);
    ASSIGN_OR_RETURN(kernels::Buffer keys, ops.Allocate(bytes));
    ASSIGN_OR_RETURN(kernels::Buffer values, ops.Allocate(bytes));
    cache.layers_.push_back({keys.AsTensor(dtype, rows, config.head_dim),
                             values.AsTensor(dtype, rows, config.head_dim),
                             config.layer_types[layer]});
    cache.buffers_.push_back(std::move(keys));
    cache.buffers_.push_back(std::move(values));
    cache.bytes_ += 2 * bytes;
  }
  return cache;
}

}  // namespace conclave::worker
