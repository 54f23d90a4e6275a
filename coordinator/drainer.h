#ifndef CONCLAVE_COORDINATOR_DRAINER_H_
#define CONCLAVE_COORDINATOR_DRAINER_H_

// ClusterService.Drain, and what SIGTERM begins: no new work; what is under way goes on until it
// has ended and its client has heard, or until the limit, which ends it UNAVAILABLE.
//
//   drainer.Begin(request, done);
//   ... drainer.Advance(posted);   // in every round of the engine's loop

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "coordinator/call_account.h"
#include "coordinator/engine.h"
#include "coordinator/scheduler.h"

namespace conclave::coordinator {

// Of the engine's thread.
class Drainer {
 public:
  // Borrows the last three.
  Drainer(absl::Duration default_limit, Scheduler& scheduler, const CallAccount& calls,
          const base::Clock& clock)
      : default_limit_(default_limit), scheduler_(scheduler), calls_(calls), clock_(clock) {}

  void Begin(const v1::DrainRequest& request, Engine::DrainDone done);
  // A drain that nobody can undo, with the default limit.
  void BeginForGood(Engine::DrainDone done);
  // `posted`: requests on their way to the scheduler.
  void Advance(int posted);
  // Answers who waits.
  void Fail(const absl::Status& status);

  bool draining() const { return draining_; }

 private:
  void Start(absl::Duration limit, Engine::DrainDone done);
  absl::Status Resume();

  const absl::Duration default_limit_;
  Scheduler& scheduler_;
  const CallAccount& calls_;
  const base::Clock& clock_;

  bool draining_ = false;
  bool for_good_ = false;
  uint32_t calls_at_begin_ = 0;
  uint32_t cut_ = 0;
  bool was_cut_ = false;
  absl::Time limit_;
  std::vector<std::pair<absl::Time, Engine::DrainDone>> waiting_;  // and since when
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_DRAINER_H_
