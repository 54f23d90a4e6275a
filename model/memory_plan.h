#ifndef CONCLAVE_MODEL_MEMORY_PLAN_H_
#define CONCLAVE_MODEL_MEMORY_PLAN_H_

// How many bytes each rank will hold, computed from headers alone, before anything is loaded.

#include <cstdint>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::model {

struct RankBytes {
  int64_t experts = 0;    // blocks, scales, biases of the experts it holds
  int64_t attention = 0;  // its heads' projections, norms, router, sinks
  int64_t embedding = 0;  // its rows of embedding and lm_head, or the whole head that replaces it
  int64_t total() const { return experts + attention + embedding; }
};

// [world] Bytes of the checkpoint's tensors that each rank reads. A tied embedding counts once;
// heads from folders of their own are not counted.
std::vector<RankBytes> PlanWeights(const Config& config, const Checkpoint& checkpoint,
                                   const ParallelShape& shape, const Placement& placement);

// Bytes of K and V of one token in one layer on one rank. `bytes_per_value` is 4 on CPU, 2 on CUDA.
int64_t KvBytesPerTokenLayer(const Config& config, int tp, int bytes_per_value);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_MEMORY_PLAN_H_
