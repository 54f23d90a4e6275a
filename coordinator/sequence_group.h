#ifndef CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_
#define CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_

// The sequences resident in one data-parallel group: their slots, their KV blocks, and the group's
// share of each plan. Knows nothing of the other groups.
//
// A sequence is admitted when there are blocks for the tokens it brings; for those it generates it
// takes blocks as it goes. When none are left, sequences of lower rank give theirs up and come back
// later (preemption by recompute). The one of the highest rank always finds blocks, so that there
// is progress whatever was admitted.

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/exchange_policy.h"
#include "coordinator/kv_blocks.h"
#include "coordinator/prefix_cache.h"
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

  // Whether a waiting sequence could be admitted now, and with what part of it in the cache.
  struct Offer {
    enum class Answer { kFits, kNoSlot, kNoBlocks };
    Answer answer = Answer::kNoSlot;
    PrefixCache::Hit hit;
  };
  Offer Consider(const Sequence& sequence) const;
  // Whether there is a slot for a sequence that generates, or for one that only reads heads.
  bool HasSlot(bool generates) const;

  // Takes a sequence that fits, by the offer made since the last change of the group.
  void Admit(std::unique_ptr<Sequence> sequence, const PrefixCache::Hit& hit, absl::Time now);

  // Rows still to compute that are known of: what a new sequence would have to share steps with.
  int64_t Load() const;

  // Adds new sequences and chunks to `plan`: first one row of every decoding sequence, then chunks
  // of prompts, each in order of rank; in every other plan short prompts come before long ones.
  // Sequences may be preempted for it. Commit must follow unless there are no rows.
  GroupRows AddTo(internal::v1::StepPlan& plan);
  // The plan will be sent. That of an idle group has no chunks, and is answered like any other.
  void Commit(internal::v1::StepPlan& plan);

  struct Ended {
    RequestId id = 0;
    int unused_tokens = 0;  // that it could still have generated
  };
  // The answer to the oldest plan not yet answered. Sequences that ended by it are appended to
  // `ended`. INTERNAL when it is not an answer to that plan; the epoch cannot go on then.
  absl::Status OnResult(const internal::v1::StepResult& result, absl::Time now,
                        std::vector<Ended>& ended);

  // Sequences that were preempted, and are to be admitted again, since the last call.
  std::vector<std::unique_ptr<Sequence>> TakePreempted();

  // Every resident sequence is preempted. No plan is unanswered.
  void PreemptAll();

  // Ends a resident sequence ahead of its results; its slot and blocks are freed now, or after the
  // last plan that contains it.
  void End(Sequence& sequence, const absl::Status& status, FinishReason reason, absl::Time now);

  int running() const { return running_; }
  const KvPools& pools() const { return *pools_; }

 private:
  // What a plan asked of one sequence, kept until the answer.
  struct PlannedChunk {
    Sequence* sequence = nullptr;
    int slot = 0;
    int start = 0;
    int rows = 0;
    bool sample = false;
    int heads = 0;         // the next so many of the step
    int targets = 0;       // log-probabilities of given tokens
    int first_target = 0;  // position of the row asked for the first
    int top = 0;
  };
  struct PlannedStep {
    std::vector<PlannedChunk> chunks;
    std::vector<HeadRead> heads;
  };

  int LongestChunk(const Sequence& sequence) const;
  BlockCount NeededBy(const Sequence& sequence, const PrefixCache::Hit& hit) const;
  void AddDecodeRows(internal::v1::StepPlan& plan, GroupRows& total);
  void AddPrompts(int longest, internal::v1::StepPlan& plan, GroupRows& total);
  void AddRows(Sequence& sequence, internal::v1::StepPlan& plan, GroupRows& total);
  void AddChunk(Sequence& sequence, int rows, internal::v1::StepPlan& plan, GroupRows& total);
  void Expect(Sequence& sequence, int start, int rows, const internal::v1::Chunk& chunk);
  void SettleTaken(Sequence& sequence, const BlockDelta& delta);
  bool MakeRoomFor(const Sequence& sequence);
  BlockCount Returning() const;
  Sequence* LowestBelow(const Sequence& sequence);
  // The next entries of a result.
  struct ResultPlace {
    int sample = 0;
    int head = 0;
    int target = 0;
  };
  absl::Status Check(const PlannedStep& step, const internal::v1::StepResult& result) const;
  absl::Status CheckSample(const PlannedChunk& chunk, const internal::v1::StepResult& result,
                           int sample) const;
  absl::Status CheckHead(const PlannedChunk& chunk, const HeadRead& read,
                         const internal::v1::StepResult& result, int head) const;
  absl::Status CheckTargets(const PlannedChunk& chunk, const internal::v1::StepResult& result,
                            int target) const;
  void Deliver(const PlannedChunk& chunk, const internal::v1::StepResult& result,
               ResultPlace& place, absl::Time now);
  void Leave(Sequence& sequence);
  std::unique_ptr<Sequence> Remove(Sequence& sequence);
  void SettleOwed(Sequence& sequence, BlockCount owed);

  const SchedulerOptions& options_;
  SchedulerCounters& counters_;
  const int max_sequences_;
  std::unique_ptr<KvPools> pools_;                    // outlives the sequences
  std::vector<std::unique_ptr<Sequence>> slots_;      // [max_sequences] owns the residents
  std::vector<Sequence*> resident_;                   // by rank, highest first
  std::vector<std::unique_ptr<Sequence>> withdrawn_;  // until TakePreempted
  std::vector<int> free_slots_;                       // stack
  std::vector<int> freed_slots_;                      // workers do not know yet
  std::vector<Sequence*> prompts_;                    // of AddTo: residents that do not decode yet
  PlannedStep forming_;                               // between AddTo and Commit
  PlannedStep spare_;                                 // keeps its memory for a later step
  std::deque<PlannedStep> in_flight_;                 // oldest first
  BlockCount owed_;                                   // sum of the residents'
  int running_ = 0;                                   // resident and not ended
  int generating_ = 0;                                // slots held by sequences that generate
  uint64_t plan_ = 1;                                 // number of the one being formed
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SEQUENCE_GROUP_H_
