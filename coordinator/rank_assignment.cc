#include "coordinator/rank_assignment.h"

#include "base/check.h"

namespace conclave::coordinator {

std::vector<int> AssignRanks(std::span<const std::optional<int>> previous, int world) {
  CONCLAVE_CHECK(static_cast<int>(previous.size()) >= world);
  std::vector<int> ranks(previous.size(), -1);
  std::vector<bool> taken(world, false);
  for (size_t worker = 0; worker < previous.size(); ++worker) {
    const std::optional<int> claim = previous[worker];
    if (!claim.has_value() || *claim < 0 || *claim >= world || taken[*claim]) continue;
    ranks[worker] = *claim;
    taken[*claim] = true;
  }
  int gap = 0;
  for (int& rank : ranks) {
    if (rank >= 0) continue;
    while (gap < world && taken[gap]) ++gap;
    if (gap == world) break;
    rank = gap++;
  }
  return ranks;
}

}  // namespace conclave::coordinator
