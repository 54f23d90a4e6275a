#include "coordinator/cluster_options.h"

#include <utility>

#include "base/status_macros.h"
#include "model/memory_plan.h"

namespace conclave::coordinator {

absl::Status PlanModel(const model::Checkpoint& checkpoint, ClusterOptions& options) {
  RETURN_IF_ERROR(model::CheckShape(options.config, options.shape));
  options.placement = model::BalancedPlacement(options.config, options.shape.world());
  options.weight_bytes.clear();
  for (const model::RankBytes& bytes :
       model::PlanWeights(options.config, checkpoint, options.shape, options.placement)) {
    options.weight_bytes.push_back(bytes.total());
  }
  options.expert_bytes = model::ExpertBytes(checkpoint);
  options.copies_weights = checkpoint.layout() == model::Layout::kBf16;
  options.model_bytes = model::PlanWeights(options.config, checkpoint, {.dp = 1, .tp = 1},
                                           model::BalancedPlacement(options.config, 1))
                            .front()
                            .total();
  return absl::OkStatus();
}

void ReplacePlacement(model::Placement placement, ClusterOptions& options) {
  for (int rank = 0; rank < options.shape.world(); ++rank) {
    int64_t more = 0;
    for (size_t layer = 0; layer < placement.layers.size(); ++layer) {
      more += static_cast<int64_t>(placement.layers[layer].ExpertsOf(rank).size());
      more -= static_cast<int64_t>(options.placement.layers[layer].ExpertsOf(rank).size());
    }
    options.weight_bytes[rank] += more * options.expert_bytes;
  }
  options.placement = std::move(placement);
}

}  // namespace conclave::coordinator
