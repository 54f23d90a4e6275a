#include "coordinator/sequence.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "coordinator/request_limits.h"

namespace conclave::coordinator {
namespace {

TokenEvent ToTokenEvent(const internal::v1::Sampled& sampled) {
  TokenEvent event{
      .token = static_cast<int>(sampled.token()), .logprob = sampled.logprob(), .top = {}};
  const int top = std::min(sampled.top_tokens_size(), sampled.top_logprobs_size());
  event.top.reserve(top);
  for (int i = 0; i < top; ++i) {
    event.top.emplace_back(sampled.top_tokens(i), sampled.top_logprobs(i));
  }
  return event;
}

// The sampler counts the tokens that the sequence has.
bool CountsTokens(const internal::v1::Sampling& sampling) {
  const float repetition = sampling.repetition_penalty();
  return (repetition != 0 && repetition != 1) || sampling.presence_penalty() != 0 ||
         sampling.frequency_penalty() != 0;
}

// The duration until `then`, or until `now` for what never happened.
absl::Duration Until(absl::Time start, absl::Time then, absl::Time now) {
  return std::min(then, now) - start;
}

}  // namespace

Sequence::Sequence(RequestId id, Request request, int context_length, absl::Time now)
    : id_(id),
      priority_(request.priority),
      compute_limit_(ComputeLimit(request, context_length)),
      completion_limit_(CompletionLimit(request, context_length)),
      prompt_tokens_(static_cast<int>(request.tokens.size())),
      generates_(request.max_tokens > 0),
      reads_prompt_(!request.heads.empty() || request.prompt_logprobs >= 0),
      heeds_eos_(!request.ignore_eos),
      has_stop_ids_(!request.stop_token_ids.empty()),
      has_stop_strings_(request.stop_strings != nullptr),
      tokens_(std::move(request.tokens)),
      sink_(std::move(request.sink)),
      request_(std::move(request)),
      prompt_logprobs_(request_.first_prompt_logprob),
      submitted_(now) {
  if (has_stop_strings_) stop_matcher_.emplace(request_.stop_strings);
}

bool Sequence::runs_to_its_limit() const {
  return generates_ && !heeds_eos_ && !has_stop_ids_ && !has_stop_strings_;
}

int Sequence::CacheLimit() const {
  int limit = static_cast<int>(tokens_.size()) - 1;
  for (const HeadRead& read : request_.heads) limit = std::min(limit, read.first);
  if (request_.prompt_logprobs >= 0 && prompt_logprobs_ < prompt_tokens_) {
    limit = std::min(limit, prompt_logprobs_ - 1);
  }
  return cacheable() ? limit : 0;
}

void Sequence::Admitted(int slot, int cached, absl::Time now, SchedulerCounters& counters) {
  slot_ = slot;
  cached_ = planned_ = cached;
  prefill_end_ = static_cast<int>(tokens_.size());
  if (admitted_ != absl::InfiniteFuture()) return;
  counters.prompt_tokens += prompt_tokens_;
  counters.hit_tokens += cached;
  admitted_ = now;
  first_cached_ = cached;
  counters.max_queue_time = std::max(counters.max_queue_time, admitted_ - submitted_);
}

internal::v1::Chunk* Sequence::AddChunk(int rows, internal::v1::StepPlan& plan) {
  CONCLAVE_CHECK(rows >= 1 && planned_ + rows <= compute_limit_);
  CONCLAVE_CHECK(decoding() ? rows == 1 : planned_ + rows <= prefill_end_);
  internal::v1::Chunk* chunk = plan.add_chunks();
  chunk->set_slot(slot_);
  chunk->set_start_position(planned_);
  if (!decoding()) {
    const auto first = tokens_.begin() + planned_;
    chunk->mutable_tokens()->Add(first, first + rows);
  }
  const int end = planned_ + rows;
  if (reads_prompt_) {
    WantHeads(end, *chunk);
    WantPromptLogprobs(end, *chunk);
  }
  chunk->set_sample(generates() && end >= prefill_end_);
  planned_ = end;
  ++plans_in_flight_;
  samples_in_flight_ += chunk->sample() ? 1 : 0;
  return chunk;
}

void Sequence::WantHeads(int end, internal::v1::Chunk& chunk) const {
  for (const HeadRead& read : request_.heads) {
    const int first = std::max({read.first, planned_, accepted_});
    const int last = std::min(read.first + read.count, end);
    if (first >= last) continue;
    internal::v1::HeadWant* want = chunk.add_heads();
    want->set_head(read.head);
    want->set_first(first - planned_);
    want->set_count(last - first);
  }
}

// Of rows up to position `end`: each is asked for the token after it. Not again those that were
// given out before the sequence lost its slot.
void Sequence::WantPromptLogprobs(int end, internal::v1::Chunk& chunk) const {
  if (request_.prompt_logprobs < 0) return;
  const int first = std::max(planned_, prompt_logprobs_ - 1);
  const int last = std::min(end, prompt_tokens_ - 1);
  if (first >= last) return;
  internal::v1::LogprobWant* want = chunk.mutable_logprobs();
  want->set_first(first - planned_);
  const auto target = tokens_.begin() + 1;
  want->mutable_targets()->Add(target + first, target + last);
  want->set_top(request_.prompt_logprobs);
}

void Sequence::Introduce(internal::v1::NewSequence& introduction) {
  introduced_ = true;
  introduction.set_slot(slot_);
  *introduction.mutable_sampling() = request_.sampling;
  introduction.mutable_forced_expert_ids()->Add(request_.forced_expert_ids.begin(),
                                                request_.forced_expert_ids.end());
  if (CountsTokens(request_.sampling)) {
    introduction.mutable_history()->Add(tokens_.begin(), tokens_.end());
  }
  if (cached_ == 0) return;
  introduction.set_cached_tokens(cached_);
  introduction.set_first_sliding_block(blocks_.first_sliding());
  introduction.mutable_full_blocks()->Add(blocks_.full().begin(), blocks_.full().end());
  introduction.mutable_sliding_blocks()->Add(blocks_.sliding().begin(), blocks_.sliding().end());
}

void Sequence::EnterInCache() {
  const int known = std::min(planned_, static_cast<int>(tokens_.size()));
  if (!blocks_.CanEnter(known)) return;
  // Labels that are scored after one input share the tokens before the first that is asked for.
  const bool labels = request_.prompt_logprobs >= 0 && request_.first_prompt_logprob > 1;
  blocks_.Enter(tokens().first(known), labels ? request_.first_prompt_logprob : prompt_tokens_);
}

void Sequence::PlanAnswered(bool sampled) {
  CONCLAVE_CHECK(plans_in_flight_ > 0);
  --plans_in_flight_;
  samples_in_flight_ -= sampled ? 1 : 0;
}

void Sequence::Withdraw() {
  CONCLAVE_CHECK(preempted_ && quiet() && !ended_);
  blocks_.Free();
  preempted_ = introduced_ = false;
  slot_ = -1;
  planned_ = cached_ = 0;
  last_plan = 0;  // it may come to another group, which counts its own
}

void Sequence::AcceptToken(const internal::v1::Sampled& sampled,
                           const std::vector<int>& eos_token_ids, absl::Time now,
                           SchedulerCounters& counters) {
  CONCLAVE_CHECK(!ended_ && completion_tokens_ < completion_limit_);
  if (completion_tokens_++ == 0) first_token_ = now;
  TokenEvent event = ToTokenEvent(sampled);
  event.is_stop = IsStop(event.token, eos_token_ids);
  last_token_ = event.token;
  if (has_stop_strings_ && !event.is_stop) {
    const bool early = completion_tokens_ <= request_.min_tokens;
    const StopMatch match = stop_matcher_->Append(event.token, early);
    event.held_bytes = match.held_bytes;
    event.stop_string = match.string >= 0;
    if (event.stop_string) stop_string_ = request_.stop_strings->string(match.string);
  }
  sink_->OnTokens(std::span<const TokenEvent>(&event, 1));
  if (event.is_stop || event.stop_string) {
    End(absl::OkStatus(), FinishReason::kStop, now, counters);
  } else if (completion_tokens_ == completion_limit_) {
    End(absl::OkStatus(), FinishReason::kLength, now, counters);
  } else {
    tokens_.push_back(event.token);
  }
}

void Sequence::AcceptTargetLogprobs(const internal::v1::TargetLogprobs& logprobs) {
  CONCLAVE_CHECK(!ended_);
  const int first = static_cast<int>(logprobs.first_position()) + 1;
  CONCLAVE_CHECK(first == prompt_logprobs_);
  const int rows = logprobs.logprobs_size();
  const int top = logprobs.top_tokens_size() / rows;
  std::vector<PromptLogprob> out(rows);
  for (int row = 0; row < rows; ++row) {
    out[row].token = tokens_[first + row];
    out[row].logprob = logprobs.logprobs(row);
    for (int i = row * top; i < (row + 1) * top; ++i) {
      out[row].top.emplace_back(logprobs.top_tokens(i), logprobs.top_logprobs(i));
    }
  }
  prompt_logprobs_ = first + rows;
  sink_->OnPromptLogprobs(out);
}

void Sequence::AcceptHeadLogits(const internal::v1::HeadLogits& logits) {
  CONCLAVE_CHECK(!ended_);
  sink_->OnHeadLogits(logits.head(), logits.first_position(),
                      std::span<const float>(logits.logits().data(), logits.logits_size()));
}

void Sequence::AcceptComputed(int end_position, absl::Time now, SchedulerCounters& counters) {
  if (ended_) return;
  accepted_ = std::max(accepted_, end_position);
  if (generates() || end_position < prompt_tokens_) return;
  End(absl::OkStatus(), FinishReason::kHeads, now, counters);
}

void Sequence::End(const absl::Status& status, FinishReason reason, absl::Time now,
                   SchedulerCounters& counters) {
  CONCLAVE_CHECK(!ended_);
  ended_ = true;
  if (!status.ok()) {
    ++counters.requests_failed;
  } else if (reason == FinishReason::kCancelled) {
    ++counters.requests_cancelled;
  } else {
    ++counters.requests_finished;
  }
  const std::shared_ptr<RequestSink> sink = std::move(sink_);
  sink->OnEnd({.status = status,
               .reason = reason,
               .stop_string = stop_string_,
               .stop_token = last_token_,
               .prompt_tokens = prompt_tokens_,
               .completion_tokens = completion_tokens_,
               .cached_tokens = first_cached_,
               .queue_time = Until(submitted_, admitted_, now),
               .first_token_time =
                   completion_tokens_ == 0 ? absl::ZeroDuration() : first_token_ - submitted_,
               .total_time = now - submitted_});
}

bool Sequence::IsStop(int token, const std::vector<int>& eos_token_ids) const {
  const auto holds = [token](const std::vector<int>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return (heeds_eos_ && holds(eos_token_ids)) || (has_stop_ids_ && holds(request_.stop_token_ids));
}

}  // namespace conclave::coordinator
