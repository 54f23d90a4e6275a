#ifndef CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_
#define CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_

// The sequences resident in one data-parallel group: their slots, their KV blocks, and the group's
// share of each plan. Knows nothing of the other groups.

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/exchange_policy.h"
#include "coordinator/kv_blocks.h"
#include "coordinator/scheduler_options.h"
#include "coordinator/sequence.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Owned by the scheduler thread. One epoch long.
class SequenceGroup {
 public:
  // Borrows `options` and `counters`.
  SequenceGroup(const SchedulerOptions& options, const internal::v1::CacheShape& cache,
                SchedulerCounters& counters);

  // Gives `sequence` a slot and the blocks it can need, and takes it; or returns false and leaves
  // it.
  bool Admit(std::unique_ptr<Sequence>& sequence, absl::Time now);

  // Rows still to compute that are known of: what a new sequence would have to share steps with.
  int64_t Load() const;

  bool Runnable() const;

  // Adds the group's freed slots, new sequences and chunks to `plan`: first one row of every
  // decoding sequence, then chunks of prompts, oldest sequence first. A plan of an idle group has
  // no chunks, and is answered like any other.
  GroupRows AddTo(internal::v1::StepPlan& plan);

  // The answer to the oldest plan not yet answered. Ids of sequences that ended by it are appended
  // to `ended`. INTERNAL when it is not an answer to that plan; the epoch cannot go on then.
  absl::Status OnResult(const internal::v1::StepResult& result, absl::Time now,
                        std::vector<RequestId>& ended);

  // Ends a resident sequence ahead of its results; its slot and blocks are freed now, or after the
  // last plan that contains it.
  void End(Sequence& sequence, const absl::Status& status, FinishReason reason, absl::Time now);

  // Ends every resident sequence with `status`.
  void FailAll(const absl::Status& status, absl::Time now);

  int running() const { return running_; }
  const KvPools& pools() const { return pools_; }

 private:
  // What a plan asked of one sequence, kept until the answer.
  struct PlannedChunk {
    Sequence* sequence = nullptr;
    int start = 0;
    int rows = 0;
    bool sample = false;
    std::vector<internal::v1::HeadWant> heads;
    int targets = 0;       // log-probabilities of given tokens
    int first_target = 0;  // position of the row asked for the first
    int top = 0;
  };
  using PlannedStep = std::vector<PlannedChunk>;

  void AddChunk(Sequence& sequence, int rows, internal::v1::StepPlan& plan, PlannedStep& step,
                GroupRows& total);
  absl::Status Check(const PlannedStep& step, const internal::v1::StepResult& result) const;
  absl::Status CheckTargets(const PlannedStep& step, const internal::v1::StepResult& result) const;
  // The next entries of a result.
  struct ResultPlace {
    int sample = 0;
    int head = 0;
    int target = 0;
  };
  void Deliver(const PlannedChunk& chunk, const internal::v1::StepResult& result,
               ResultPlace& place, absl::Time now);
  void Release(Sequence& sequence);

  const SchedulerOptions& options_;
  SchedulerCounters& counters_;
  KvPools pools_;
  std::vector<std::unique_ptr<Sequence>> resident_;  // by admission, oldest first
  std::vector<int> free_slots_;                      // stack
  std::vector<int> freed_slots_;                     // workers do not know yet
  std::deque<PlannedStep> in_flight_;                // oldest first
  int running_ = 0;                                  // resident and not ended
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_
