#ifndef CONCLAVE_WORKER_KV_CACHE_H_
#define CONCLAVE_WORKER_KV_CACHE_H_

// Storage of keys and values of one rank: one pool of blocks for each layer, all full-attention
// layers with one number of blocks and all sliding-window layers with another. Block b of a kind is
// the same block in every layer of that kind. Which sequence owns which block is the coordinator's
// business.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"

namespace conclave::worker {

struct KvCacheShape {
  int kv_heads = 0;  // of this tp rank
  int block_tokens = 16;
  int full_blocks = 0;     // in each full-attention layer
  int sliding_blocks = 0;  // in each sliding-window layer
};

class KvCache {
 public:
  // RESOURCE_EXHAUSTED, with the bytes, when the device cannot hold it.
  static absl::StatusOr<KvCache> Create(const model::Config& config, const KvCacheShape& shape,
                                        kernels::Ops& ops);

  // Keys and values [blocks, kv_heads, block_tokens, D], as a matrix of D columns.
  const kernels::KvLayer& layer(int index) const { return layers_[index]; }
  int64_t bytes() const { return bytes_; }

 private:
  std::vector<kernels::Buffer> buffers_;
  std::vector<kernels::KvLayer> layers_;
  int64_t bytes_ = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_KV_CACHE_H_
