#ifndef CONCLAVE_COORDINATOR_SEQUENCE_H_
#define CONCLAVE_COORDINATOR_SEQUENCE_H_

// One request from Submit until the last result that mentions it.
//
//   queued -> resident (slot, blocks) -> ended -> released
//
// It ends once (the sink hears of it), and stays resident until every plan that contains it is
// answered: the workers may still be writing its blocks.

#include <cstdint>
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
  uint64_t requests_cancelled = 0;
  uint64_t overrun_tokens = 0;  // sampled for sequences that had already ended
};

// Owned by the scheduler thread.
class Sequence {
 public:
  Sequence(RequestId id, Request request, int context_length, absl::Time now);

  RequestId id() const { return id_; }
  absl::Time deadline() const { return request_.deadline; }
  int prompt_tokens() const { return prompt_tokens_; }
  bool generates() const { return request_.max_tokens > 0; }
  bool ended() const { return ended_; }

  // Positions in [0, compute_limit) may be computed, [0, planned) are in plans already sent.
  int compute_limit() const { return compute_limit_; }
  int planned() const { return planned_; }
  bool decoding() const { return planned_ >= prompt_tokens_; }
  // Something to compute may go into the next plan.
  bool runnable() const;

  // Called when it gets its slot.
  void Admitted(int slot, absl::Time now);
  int slot() const { return slot_; }
  SequenceBlocks& blocks() { return blocks_; }

  // The chunk of the next `rows` positions, without block changes. Advances planned().
  internal::v1::Chunk NextChunk(int rows);
  // The first chunk's introduction; its forced ids move out.
  internal::v1::NewSequence Introduction();

  // A plan that contained the sequence was answered; `sampled`: it asked for a token.
  void PlanAnswered(bool sampled);
  // Every plan that contained it is answered.
  bool quiet() const { return plans_in_flight_ == 0; }

  // Results, in order. Not after the end.
  void AcceptToken(const internal::v1::Sampled& sampled, const std::vector<int>& eos_token_ids,
                   absl::Time now, SchedulerCounters& counters);
  void AcceptTargetLogprobs(const internal::v1::TargetLogprobs& logprobs);
  void AcceptHeadLogits(const internal::v1::HeadLogits& logits);
  // Ends a request that generates nothing and whose last row has been computed.
  void AcceptComputed(int end_position, absl::Time now, SchedulerCounters& counters);

  // Ends the request: `reason` counts when `status` is OK. Not twice.
  void End(const absl::Status& status, FinishReason reason, absl::Time now,
           SchedulerCounters& counters);

 private:
  void WantPromptLogprobs(int end, internal::v1::Chunk& chunk) const;
  bool IsStop(int token, const std::vector<int>& eos_token_ids) const;

  RequestId id_;
  Request request_;
  int prompt_tokens_;
  int completion_limit_;
  int compute_limit_;

  int slot_ = -1;
  SequenceBlocks blocks_;
  int planned_ = 0;
  int plans_in_flight_ = 0;
  int samples_in_flight_ = 0;
  int completion_tokens_ = 0;
  bool ended_ = false;
  std::optional<StopMatcher> stop_matcher_;
  std::string stop_string_;  // once one is complete
  int last_token_ = 0;
  // Log-probabilities of the prompt's tokens [1, prompt_logprobs_) have been given out.
  int prompt_logprobs_ = 1;

  absl::Time submitted_;
  absl::Time admitted_ = absl::InfiniteFuture();
  absl::Time first_token_ = absl::InfiniteFuture();
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SEQUENCE_H_
