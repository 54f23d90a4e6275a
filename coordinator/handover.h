#ifndef CONCLAVE_COORDINATOR_HANDOVER_H_
#define CONCLAVE_COORDINATOR_HANDOVER_H_

// When a worker asks to leave. If another can take its place, requests pause: steps that were sent
// are answered, a new epoch begins without the leaver, and they are computed again as far as they
// were and go on. If none can, nothing new is taken, and the leaver computes until the requests
// have ended, or until the limit, or until another worker joins.
//
//   ... handover.Advance(rebalancing);   // in every round of the engine's loop

#include <string>

#include "absl/time/time.h"
#include "base/clock.h"
#include "coordinator/cluster.h"
#include "coordinator/scheduler.h"

namespace conclave::coordinator {

// Of the engine's thread.
class Handover {
 public:
  // Borrows the last three.
  Handover(absl::Duration limit, Cluster& cluster, Scheduler& scheduler, const base::Clock& clock)
      : limit_(limit), cluster_(cluster), scheduler_(scheduler), clock_(clock) {}

  // After the scheduler has followed the cluster's epoch. `rebalancing`: its turn comes later.
  void Advance(bool rebalancing);

  // A worker waits to leave.
  bool under_way() const { return since_ != absl::InfiniteFuture(); }
  // And no other can take its place: nothing new is to be taken.
  bool refusing() const { return under_way() && !cluster_.has_substitute(); }

 private:
  void AwaitNextEpoch(absl::Time now);
  void Release();

  const absl::Duration limit_;
  Cluster& cluster_;
  Scheduler& scheduler_;
  const base::Clock& clock_;

  absl::Time since_ = absl::InfiniteFuture();  // a worker asks to leave
  bool held_ = false;                          // until the plans are answered
  bool suspended_ = false;                     // requests wait for the next epoch
  absl::Time last_loading_;                    // it was under way
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_HANDOVER_H_
