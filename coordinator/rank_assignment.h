#ifndef CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_
#define CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "model/placement.h"

namespace conclave::coordinator {

struct RankCandidate {
  std::optional<int> previous;  // the rank that it had
  std::string_view host;
};

// The rank of each worker, by order of registration; -1 for a spare. A worker keeps the rank it had
// (its weights are resident) unless an earlier one claims the same. The others fill the gaps so
// that the ranks of a tp group, which exchange activations twice a layer, share a host where one
// has workers enough. At least `shape.world()` workers.
std::vector<int> AssignRanks(std::span<const RankCandidate> workers,
                             const model::ParallelShape& shape);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_
