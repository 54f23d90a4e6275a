#ifndef CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_
#define CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_

#include <optional>
#include <span>
#include <vector>

namespace conclave::coordinator {

// The rank of each worker, by order of registration; -1 for a spare. A worker keeps the rank it had
// (its weights are resident) unless an earlier one claims the same; the others fill the gaps.
// `previous` [workers]; at least `world` of them.
std::vector<int> AssignRanks(std::span<const std::optional<int>> previous, int world);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_RANK_ASSIGNMENT_H_
