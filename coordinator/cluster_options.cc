#include "coordinator/cluster_options.h"

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
  options.copies_weights = checkpoint.layout() == model::Layout::kBf16;
  options.model_bytes = model::PlanWeights(options.config, checkpoint, {.dp = 1, .tp = 1},
                                           model::BalancedPlacement(options.config, 1))
                            .front()
                            .total();
  return absl::OkStatus();
}

}  // namespace conclave::coordinator
