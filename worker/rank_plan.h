#ifndef CONCLAVE_WORKER_RANK_PLAN_H_
#define CONCLAVE_WORKER_RANK_PLAN_H_

// An Assignment in the types of the model and the forward pass, checked against the checkpoint that
// this worker found.

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/sequence_table.h"
#include "worker/transformer.h"

namespace conclave::worker {

struct RankPlan {
  TransformerOptions options;
  model::Placement placement;
  std::vector<std::pair<std::string, std::string>> heads;  // name, folder
};

// INVALID_ARGUMENT names what does not fit the model, or one another.
absl::StatusOr<RankPlan> ParseAssignment(const internal::v1::Assignment& assignment,
                                         const model::Config& config);

// Limits of the sequence table; `head_labels` as in SequenceTable::Limits.
SequenceTable::Limits TableLimits(const model::Config& config, const TransformerOptions& options,
                                  std::vector<int> head_labels);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_RANK_PLAN_H_
