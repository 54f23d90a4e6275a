#ifndef CONCLAVE_COORDINATOR_SEQUENCE_H_
#define CONCLAVE_COORDINATOR_SEQUENCE_H_

// One completion of one request from Submit until the last result that mentions it.
//
//   queued -> resident (slot, blocks) -> ended -> released
//      ^            |
//      +- preempted-+   its blocks are wanted elsewhere: it gives everything up once the plans that
//                       contain it are answered, and later computes its tokens again
//
// It ends once (the sink hears of it), and stays resident until every plan that contains it is
// answered: the workers may still be writing its blocks.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/kv_blocks.h"
#include "coordinator/stop_strings.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Totals since the coordinator started.
struct SchedulerCounters {
  uint64_t tokens_computed = 0;
  uint64_t steps = 0;
  int max_plans_in_flight = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_failed = 0;
  uint64_t requests_refused_early = 0;  // part of requests_failed
  uint64_t requests_cancelled = 0;
  uint64_t overrun_tokens = 0;  // sampled for sequences that had already ended
  uint64_t preemptions = 0;
  uint64_t evicted_blocks = 0;  // in epochs that have ended
  uint64_t prompt_tokens = 0;   // of sequences admitted, and how many were in the prefix cache
  uint64_t hit_tokens = 0;
  absl::Duration max_queue_time;  // until the first admission
};

// Owned by the scheduler thread.
class Sequence {
 public:
  Sequence(RequestId id, Request request, int context_length, absl::Time now);

  RequestId id() const { return id_; }
  // Without its tokens and its sink.
  const Request& request() const { return request_; }
  absl::Time deadline() const { return request_.deadline; }
  int prompt_tokens() const { return prompt_tokens_; }
  bool generates() const { return generates_; }
  // Nothing but its limit ends it: its length is known.
  bool runs_to_its_limit() const;
  bool ended() const { return ended_; }
  // Of the higher rank are the higher priority and, among equals, the earlier request. Those of the
  // lowest rank give way when blocks run out.
  bool RanksAbove(const Sequence& other) const {
    if (priority_ != other.priority_) return priority_ > other.priority_;
    return id_ < other.id_;
  }

  // The prompt, and the tokens generated so far.
  std::span<const int32_t> tokens() const { return tokens_; }
  // Tokens that may still be generated.
  int tokens_to_come() const { return completion_limit_ - completion_tokens_; }
  // Tokens at the beginning that need not be computed when the cache has them. The last one always
  // is, and the first whose head is read.
  int CacheLimit() const;
  // Whole blocks hold what the same tokens would give in any other sequence.
  bool cacheable() const { return request_.forced_expert_ids.empty(); }

  // Positions in [0, compute_limit) may be computed, [0, planned) are in plans already sent or
  // came from the cache.
  int compute_limit() const { return compute_limit_; }
  int planned() const { return planned_; }
  // Tokens known when it was admitted: computed in chunks, the rest one by one.
  int prefill_end() const { return prefill_end_; }
  bool decoding() const { return planned_ >= prefill_end_; }
  // Something to compute may go into the next plan.
  bool runnable() const {
    return !ended_ && !preempted_ && planned_ < compute_limit_ &&
           samples_in_flight_ < kMaxSamplesInFlight;
  }

  // Called when it gets its slot and begins to hold its blocks, `cached` tokens among them.
  void Admitted(int slot, int cached, absl::Time now, SchedulerCounters& counters);
  int slot() const { return slot_; }
  bool introduced() const { return introduced_; }
  SequenceBlocks& blocks() { return blocks_; }
  const SequenceBlocks& blocks() const { return blocks_; }

  // Appends the chunk of the next `rows` positions to `plan`, without block changes. Advances
  // planned().
  internal::v1::Chunk* AddChunk(int rows, internal::v1::StepPlan& plan);
  // Fills in the first chunk's introduction.
  void Introduce(internal::v1::NewSequence& introduction);
  // Enters whole blocks in the prefix cache.
  void EnterInCache();

  // A plan that contained the sequence was answered; `sampled`: it asked for a token.
  void PlanAnswered(bool sampled);
  // Every plan that contained it is answered.
  bool quiet() const { return plans_in_flight_ == 0; }
  // It has ended or was preempted, and no plan contains it any more.
  bool leaving() const { return (ended_ || preempted_) && quiet(); }

  // It gives way: no further chunk. Once quiet, Withdraw makes it as it was in the queue, with the
  // tokens generated since.
  void Preempt() { preempted_ = true; }
  bool preempted() const { return preempted_; }
  void Withdraw();

  // Results, in order. Not after the end.
  void AcceptToken(const internal::v1::Sampled& sampled, const std::vector<int>& eos_token_ids,
                   absl::Time now, SchedulerCounters& counters);
  void AcceptTargetLogprobs(const internal::v1::TargetLogprobs& logprobs);
  void AcceptHeadLogits(const internal::v1::HeadLogits& logits);
  // Positions below `end_position` are computed and their results have been accepted. Ends a
  // request that generates nothing and whose last row that was.
  void AcceptComputed(int end_position, absl::Time now, SchedulerCounters& counters);

  // Ends the request: `reason` counts when `status` is OK. Not twice.
  void End(const absl::Status& status, FinishReason reason, absl::Time now,
           SchedulerCounters& counters);

  // Begin to load what planning and answering touch, some sequences before it is this one's turn:
  // with a thousand of them, waiting for memory is most of what a step costs.
  void PrefetchFields() const {
    const char* const begin = reinterpret_cast<const char*>(this);
    for (size_t line = 0; line < kHotBytes; line += kCacheLine) __builtin_prefetch(begin + line);
  }
  // After PrefetchFields has had its time.
  void PrefetchAnswer() const {
    __builtin_prefetch(tokens_.data() + tokens_.size(), /*rw=*/1);
    __builtin_prefetch(sink_.get());
  }

  // Of its group's account: blocks promised at admission and not taken yet.
  BlockCount owed;
  // Number of the group's last plan that has a chunk of it.
  uint64_t last_plan = 0;

 private:
  // Unanswered samples of one sequence at most. A sequence that turns out to have stopped then has
  // one further token computed, whatever the depth of the pipeline.
  static constexpr int kMaxSamplesInFlight = 2;

  static constexpr size_t kCacheLine = 64;
  static constexpr size_t kHotBytes = 4 * kCacheLine;  // up to sink_

  void WantHeads(int end, internal::v1::Chunk& chunk) const;
  void WantPromptLogprobs(int end, internal::v1::Chunk& chunk) const;
  bool IsStop(int token, const std::vector<int>& eos_token_ids) const;

  // What every step looks at comes first, together: with a thousand sequences, the cache lines that
  // are touched are most of what a step costs.
  RequestId id_;
  int priority_;
  int slot_ = -1;
  int planned_ = 0;
  int prefill_end_ = 0;
  int compute_limit_;
  int plans_in_flight_ = 0;
  int samples_in_flight_ = 0;
  int accepted_ = 0;  // positions whose results have been accepted
  int completion_tokens_ = 0;
  int completion_limit_;
  int prompt_tokens_;
  int last_token_ = 0;
  bool generates_;
  bool reads_prompt_;  // heads or log-probabilities of the prompt are asked for
  bool heeds_eos_;
  bool has_stop_ids_;
  bool has_stop_strings_;
  bool introduced_ = false;
  bool preempted_ = false;
  bool ended_ = false;
  SequenceBlocks blocks_;
  std::vector<int32_t> tokens_;
  std::shared_ptr<RequestSink> sink_;  // until the end

  Request request_;
  int cached_ = 0;        // of this admission
  int first_cached_ = 0;  // of the first admission
  std::optional<StopMatcher> stop_matcher_;
  std::string stop_string_;  // once one is complete
  // Log-probabilities of the prompt's tokens [first_prompt_logprob, prompt_logprobs_) have been
  // given out.
  int prompt_logprobs_;

  absl::Time submitted_;
  absl::Time admitted_ = absl::InfiniteFuture();
  absl::Time first_token_ = absl::InfiniteFuture();
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SEQUENCE_H_
