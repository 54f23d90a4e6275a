#ifndef CONCLAVE_COORDINATOR_SCHEDULER_H_
#define CONCLAVE_COORDINATOR_SCHEDULER_H_

// Continuous batching: decides what every rank computes in every step.
//
//   scheduler.BeginEpoch(epoch, cache);
//   scheduler.Submit(id, request);
//   while (const WorldPlan* plan = scheduler.NextPlan()) ... send plan->groups[dp_rank] ...
//   RETURN_IF_ERROR(scheduler.OnResult(rank, result));   // of every rank
//
// Pure: one thread, no I/O, time only from the clock it is given. Requests that generate and
// requests that only read heads wait in two queues (coordinator/admission_queue.h), so that neither
// kind waits for the other's slots. The next one goes to the group that would have computed its
// prompt first, by its load and by what it has of the prompt in its prefix cache. Plans are
// numbered in each epoch and go to every rank; up to pipeline_depth of them are unanswered, so a
// sequence that turns out to have stopped may be in one plan too many: that result is dropped, and
// only then are its slot and blocks free.

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "coordinator/admission_pace.h"
#include "coordinator/admission_queue.h"
#include "coordinator/engine.h"
#include "coordinator/exchange_policy.h"
#include "coordinator/fair_shares.h"
#include "coordinator/progress.h"
#include "coordinator/scheduler_options.h"
#include "coordinator/sequence.h"
#include "coordinator/sequence_group.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// One step of the whole world.
struct WorldPlan {
  uint64_t step = 0;
  std::vector<internal::v1::StepPlan> groups;  // [dp]; every rank of a group gets the same
};

class Scheduler {
 public:
  // `options` have passed CheckSchedulerOptions. Borrows `clock`.
  Scheduler(const SchedulerOptions& options, const base::Clock& clock);

  // Starts numbering anew with an empty cache. What was suspended goes on, but for requests that
  // can never fit this cache: those end UNAVAILABLE.
  void BeginEpoch(uint64_t epoch, const internal::v1::CacheShape& cache);

  // Ends the epoch, not its requests: they wait, to be computed again as far as they were and go on
  // in the next one. No plan is in flight.
  void Suspend();

  // No plan is made until ContinueEpoch or Hold(false); requests are queued as ever. What was sent
  // is answered soon: then no plan is in flight.
  void Hold(bool held) { held_ = held; }
  // Goes on with all requests and the cache in an epoch of another number. No plan is in flight.
  void ContinueEpoch(uint64_t epoch);

  // Ends every queued and running request with `status`.
  void EndAll(const absl::Status& status);
  // And the epoch with them.
  void FailAll(const absl::Status& status);

  // Queues a request that passed CheckRequest for this epoch's cache. Needs an epoch. Lower ids
  // count as earlier. One that cannot make its deadline ends with DEADLINE_EXCEEDED at once. A fork
  // of `leader`, another request, waits until the leader's prompt is computed, to find it in the
  // prefix cache.
  void Submit(RequestId id, Request request, std::optional<RequestId> leader = std::nullopt);

  // The request ends with kCancelled. Ids that are unknown or have ended are ignored.
  void Cancel(RequestId id);

  // Ends what is past its deadline, or waits and can no longer make it, with DEADLINE_EXCEEDED.
  void Expire();
  // When to call Expire next; InfiniteFuture when nothing has a deadline.
  absl::Time NextDeadline() const;

  // The next plan to send, until the next call; null: the pipeline is full, or there is nothing to
  // compute.
  const WorldPlan* NextPlan();

  // The answer of `rank` to its oldest unanswered plan. Tokens go to the sinks from here. INTERNAL
  // when it is not such an answer: the epoch cannot go on.
  absl::Status OnResult(int rank, const internal::v1::StepResult& result);

  bool in_epoch() const { return epoch_.has_value(); }
  // No request is open.
  bool idle() const { return tracked_.empty(); }
  // Wait for their admission.
  int queued() const;
  // After what time a client that found the queue full should try again.
  absl::Duration RetryDelay() const;
  int running() const;
  int plans_in_flight() const { return static_cast<int>(in_flight_.size()); }
  bool caches_prefixes() const { return options_.prefix_cache; }
  Progress progress() const { return progress_.Get(); }
  const SchedulerCounters& counters() const { return counters_; }
  const std::vector<std::unique_ptr<SequenceGroup>>& groups() const { return groups_; }

 private:
  // Where a request that has not ended is. `group` -1: not resident.
  struct Tracked {
    Sequence* sequence = nullptr;
    int group = -1;
    std::string user;
    absl::Time expiry;                // as in expiries_
    std::optional<RequestId> leader;  // waits for it, in followers_
  };
  // Requests of one kind that wait.
  struct Lane {
    explicit Lane(const FairShares& shares) : queue(shares) {}
    AdmissionQueue queue;
    AdmissionPace pace;
    bool lacks_blocks = false;  // the next one found none
    int passed_over = 0;        // admissions of the other lane since then
  };
  struct InFlight {
    uint64_t step = 0;
    int answers = 0;
    absl::Duration longest;  // of the step on any rank
  };

  void StartEpoch(uint64_t epoch);
  void CloseEpoch();
  void EndUnfit(const internal::v1::CacheShape& cache);
  Lane& LaneOf(const Sequence& sequence) { return lanes_[sequence.generates() ? 0 : 1]; }
  void AdmitQueued(absl::Time now);
  bool AdmitNext(Lane& lane, Lane& other, std::vector<int64_t>& loads, absl::Time now);
  void Requeue(SequenceGroup& group);
  void ReleaseFollowers();
  void ReleaseFollowersOf(RequestId leader);
  absl::Duration LeastTime(const Sequence& sequence) const;
  void SetExpiry(RequestId id, absl::Time expiry);
  void End(RequestId id, const absl::Status& status, FinishReason reason);
  void Forget(RequestId id, int unused_tokens);
  void CountAnswer(int rank, const internal::v1::StepResult& result, absl::Time now);
  void UpdateBusy(absl::Time now);

  const SchedulerOptions options_;
  const ExchangePolicy policy_;
  const base::Clock& clock_;
  SchedulerCounters counters_;
  ProgressWatch progress_;

  std::optional<uint64_t> epoch_;
  bool held_ = false;
  std::vector<std::unique_ptr<SequenceGroup>> groups_;  // [dp]
  WorldPlan plan_;  // of NextPlan; keeps its memory from step to step
  FairShares shares_;
  std::array<Lane, 2> lanes_;  // generation, heads alone
  std::unordered_map<RequestId, std::vector<std::unique_ptr<Sequence>>> followers_;  // by leader
  std::unordered_map<RequestId, Tracked> tracked_;
  // When to look at a request again: the deadline of a resident one, and for one that waits the
  // last moment at which it could still be computed in time.
  std::set<std::pair<absl::Time, RequestId>> expiries_;

  uint64_t next_step_ = 0;
  std::deque<InFlight> in_flight_;     // oldest first
  std::vector<uint64_t> next_answer_;  // [world] step that the rank answers next
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SCHEDULER_H_
