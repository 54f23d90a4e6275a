#ifndef CONCLAVE_WORKER_WEIGHTS_H_
#define CONCLAVE_WORKER_WEIGHTS_H_

// The weights one rank serves: its experts, its heads' projections, its rows of the vocabulary.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::worker {

struct LayerWeights {
  kernels::AttentionWeights attention;
  kernels::RouterWeights router;
  std::unique_ptr<kernels::ExpertWeights> experts;
  std::vector<int> local_experts;  // global ids, ascending
};

struct HeadWeights {
  std::string name;
  model::HeadConfig config;
  kernels::DenseWeight weight;  // [labels, H]
  kernels::VectorWeight bias;   // [labels] or null
};

struct RankWeights {
  kernels::DenseWeight embedding;  // rows [vocab_begin, vocab_begin + rows)
  kernels::DenseWeight lm_head;    // the same rows; null for a classification checkpoint
  kernels::VectorWeight final_norm;
  int vocab_begin = 0;
  std::vector<LayerWeights> layers;
  std::vector<HeadWeights> heads;
  int64_t bytes = 0;
  // The maps that weights are served from (CPU).
  std::shared_ptr<const model::Checkpoint> checkpoint;
  std::vector<model::AttachedHead> attached_heads;
};

struct WeightsRequest {
  model::ParallelShape shape;
  int rank = 0;
  const model::Placement* placement = nullptr;
  std::vector<std::pair<std::string, std::string>> heads;  // name, folder
  int threads = 1;                                         // that make up random weights
};

// Loads what `request.rank` needs and nothing else, touching every byte once so that the first step
// does not wait for the disk; weights that are made up (Checkpoint::Random) are generated here.
// `progress` is called with (loaded, total) bytes from this thread; returning false cancels
// (CANCELLED).
absl::StatusOr<RankWeights> LoadRankWeights(
    const model::Config& config, std::shared_ptr<const model::Checkpoint> checkpoint,
    const WeightsRequest& request, kernels::Ops& ops,
    const std::function<bool(int64_t loaded, int64_t total)>& progress);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_WEIGHTS_H_
