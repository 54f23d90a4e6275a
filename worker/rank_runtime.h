#ifndef CONCLAVE_WORKER_RANK_RUNTIME_H_
#define CONCLAVE_WORKER_RANK_RUNTIME_H_

// What the agent drives: the model of one rank, epoch by epoch. The seam between the protocol
// (agent.h) and the forward pass (model_runtime.h); tests put a fake in its place.

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/communicator.h"

namespace conclave::worker {

// Counts the epochs of this process, whichever coordinator they belong to. Rises, never repeats.
using Generation = uint64_t;

// All calls but Abort come from the step thread.
class RankRuntime {
 public:
  using Progress = std::function<void(int64_t loaded_bytes, int64_t total_bytes)>;

  virtual ~RankRuntime() = default;

  // Connects to the peers and loads what the rank needs; weights that are resident and still
  // assigned stay. An assignment that continues the last epoch needs its sequences to be there
  // (End), or is FAILED_PRECONDITION. The result is complete but for its epoch. `rendezvous` lives
  // until End.
  virtual absl::StatusOr<internal::v1::Ready> Begin(Generation generation,
                                                    const internal::v1::Assignment& assignment,
                                                    Rendezvous& rendezvous,
                                                    const Progress& progress) = 0;

  // One plan, the next in order. The result is complete but for epoch and number. After an error
  // the epoch cannot go on.
  virtual absl::StatusOr<internal::v1::StepResult> Step(const internal::v1::StepPlan& plan) = 0;

  // As Step, but the plan is only enqueued: its result is due from Finish. False: nothing was done,
  // the plan is to be given to Step once every started one is finished. At most
  // kernels::kMaxStepsAhead may be started and not finished. After an error the epoch cannot go on.
  virtual absl::StatusOr<bool> Start(const internal::v1::StepPlan& /*plan*/) { return false; }
  // Of the oldest started plan: whether Finish would not wait.
  virtual bool Finished() { return true; }
  virtual absl::StatusOr<internal::v1::StepResult> Finish() {
    return absl::FailedPreconditionError("no plan was started");
  }

  // Totals since Begin, and what is allocated now. May wait for the device.
  virtual internal::v1::RankStats Stats() = 0;

  // Forgets the communicators, keeps the weights; forgets the sequences too, unless the next Begin
  // is going to continue this epoch.
  virtual void End(bool continues) = 0;

  // Any thread: a Begin or Step of `generation` or an earlier one, running or still to come,
  // returns soon with an error.
  virtual void Abort(Generation generation) = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_RANK_RUNTIME_H_
