#ifndef CONCLAVE_COORDINATOR_CLUSTER_OPTIONS_H_
#define CONCLAVE_COORDINATOR_CLUSTER_OPTIONS_H_

// What a group of workers is to serve, decided before the first worker registers.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/engine.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model_source.h"
#include "model/placement.h"

namespace conclave::coordinator {

struct ClusterOptions {
  model::ParallelShape shape;
  std::string model_dir;
  // Every rank makes them up for itself; otherwise they are read from model_dir.
  std::optional<model::RandomWeights> random_weights;
  model::Config config;
  std::vector<Head> heads;

  // Filled by PlanModel: where the experts go, the bytes each rank reads [world], those of one
  // expert of one layer among them, and the bytes of the whole checkpoint.
  model::Placement placement;
  std::vector<int64_t> weight_bytes;
  int64_t expert_bytes = 0;
  int64_t model_bytes = 0;
  // On the CPU, experts in the transposed bf16 layout are copied to private memory; other files are
  // served from their map.
  bool copies_weights = false;

  // As in SchedulerOptions.
  int max_step_tokens = 512;
  int prefill_chunk = 256;
  int max_running = 64;

  // KV cache of each rank; 0: sized by what the sequences can need and the memory that is free.
  int64_t kv_cache_bytes = 0;

  bool require_mxfp4 = false;
  bool allow_forced_routing = false;
};

// Balanced placement of `checkpoint` over options.shape. INVALID_ARGUMENT when the shape cannot
// hold the model (model::CheckShape).
absl::Status PlanModel(const model::Checkpoint& checkpoint, ClusterOptions& options);

// Another placement of the same experts, and what each rank then reads.
void ReplacePlacement(model::Placement placement, ClusterOptions& options);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_OPTIONS_H_
