#ifndef CONCLAVE_COORDINATOR_REBALANCE_PLAN_H_
#define CONCLAVE_COORDINATOR_REBALANCE_PLAN_H_

// Where the experts should go by the load that was observed, and what that moves. Pure functions.

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/placement.h"

namespace conclave::coordinator {

// Token-expert pairs computed.
struct ObservedLoad {
  std::vector<uint64_t> experts;  // [layers, experts], over all ranks
  std::vector<uint64_t> ranks;    // [layers, world], over all experts
  uint64_t total() const;
};

// The most loaded rank's pairs over the mean of all ranks; 1 for a layer without load.
struct LayerBalance {
  double before = 1;  // as observed
  double after = 1;   // the same pairs, an expert's spread evenly over its copies
};

// Experts of all layers.
struct RankMoves {
  int held = 0;  // in the new placement
  int gained = 0;
  int dropped = 0;
  int most_in_a_layer = 0;  // held in one layer, of those layers that change
};

struct RebalancePlan {
  model::Placement placement;
  std::vector<LayerBalance> layers;  // [layers]
  std::vector<RankMoves> ranks;      // [world]
  bool changes() const;
};

// model::PlacementFromLoad, with each layer's ranks renamed so that as many experts as may be stay
// where they are in `current`, and with the layers left alone that hold `replicas` extra copies
// already and would gain less than kLeastGain.
RebalancePlan PlanRebalance(const model::Config& config, const model::Placement& current,
                            const ObservedLoad& load, int replicas);

// Below it moving weights is not worth it: of a layer's imbalance.
inline constexpr double kLeastGain = 0.02;

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REBALANCE_PLAN_H_
