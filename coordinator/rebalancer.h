#ifndef CONCLAVE_COORDINATOR_REBALANCER_H_
#define CONCLAVE_COORDINATOR_REBALANCER_H_

// ClusterService.Rebalance, from the request to its answer: plan by observed load, hold new steps
// until those sent are answered, begin an epoch with the new placement, wait until it is READY.
//
//   rebalancer.Begin(request, done);
//   ... rebalancer.Advance();   // in every round of the engine's loop

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "coordinator/cluster.h"
#include "coordinator/engine.h"
#include "coordinator/rebalance_plan.h"
#include "coordinator/scheduler.h"

namespace conclave::coordinator {

// Of the engine's thread.
class Rebalancer {
 public:
  // Borrows all three.
  Rebalancer(Cluster& cluster, Scheduler& scheduler, const base::Clock& clock)
      : cluster_(cluster), scheduler_(scheduler), clock_(clock) {}

  // Answers at once what cannot be done or needs no move.
  void Begin(const v1::RebalanceRequest& request, Engine::RebalanceDone done);
  // After the scheduler has followed the cluster's epoch.
  void Advance();
  bool under_way() const { return done_ != nullptr; }
  // Ends what is under way.
  void Fail(const absl::Status& status);

 private:
  absl::Status CheckPossible(const v1::RebalanceRequest& request) const;
  void Finish(absl::StatusOr<v1::RebalanceResponse> response);

  Cluster& cluster_;
  Scheduler& scheduler_;
  const base::Clock& clock_;

  // Of the one under way; null: none.
  Engine::RebalanceDone done_;
  RebalancePlan plan_;
  absl::Time began_;
  uint64_t from_epoch_ = 0;
  uint64_t to_epoch_ = 0;  // 0: plans are still unanswered
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REBALANCER_H_
