#ifndef CONCLAVE_MODEL_MEMORY_PLAN_H_
#define CONCLAVE_MODEL_MEMORY_PLAN_H_

// How many bytes each rank will hold, computed from headers alone, before anything is loaded.

#include <cstdint>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::model {

// Logits are made in tiles of this many rows at most.
inline constexpr int kLogitTileRows = 256;

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

// Of one expert of one layer.
int64_t ExpertBytes(const Checkpoint& checkpoint);

// What the activations of a rank depend on beside the model and the shape.
struct ActivationSizes {
  int max_step_tokens = 0;   // rows of one group's step
  int max_sequences = 0;     // of one group
  int activation_bytes = 4;  // of one value: 4 on CPU, 2 on CUDA
  int partial_bytes = 8;     // of one value of a partial sum: 8 on CPU, 4 on CUDA
  int labels = 0;            // of the largest classification head
};

// Bytes of the buffers that one rank's forward pass allocates (worker/transformer), those of both
// exchange modes included; a backend's own working memory is not.
int64_t PlanActivations(const Config& config, const ParallelShape& shape,
                        const ActivationSizes& sizes);

// Bytes of K and V of one token in one layer on one rank. `bytes_per_value` is 4 on CPU, 2 on CUDA.
int64_t KvBytesPerTokenLayer(const Config& config, int tp, int bytes_per_value);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_MEMORY_PLAN_H_
