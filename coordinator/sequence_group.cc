#include "coordinator/sequence_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

// The longest chunk of the sequence from position `planned` on.
int LongestChunk(const SchedulerOptions& options, const Sequence& sequence) {
  if (sequence.decoding()) return 1;
  return std::min(options.prefill_chunk, sequence.prompt_tokens() - sequence.planned());
}

template <typename Ids, typename Repeated>
void Append(const Ids& ids, Repeated* repeated) {
  for (int id : ids) repeated->Add(id);
}

}  // namespace

SequenceGroup::SequenceGroup(const SchedulerOptions& options, const internal::v1::CacheShape& cache,
                             SchedulerCounters& counters)
    : options_(options),
      counters_(counters),
      pools_{.full = BlockPool(cache.full_blocks()),
             .sliding = BlockPool(cache.sliding_blocks()),
             .window = options.window,
             .max_per_sequence = {}} {
  for (int slot = static_cast<int>(cache.max_sequences()) - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
}

bool SequenceGroup::Admit(std::unique_ptr<Sequence>& sequence, absl::Time now) {
  if (free_slots_.empty()) return false;
  if (!sequence->blocks().Reserve(pools_, sequence->compute_limit(),
                                  LongestChunk(options_, *sequence))) {
    return false;
  }
  sequence->Admitted(free_slots_.back(), now);
  free_slots_.pop_back();
  resident_.push_back(std::move(sequence));
  ++running_;
  return true;
}

int64_t SequenceGroup::Load() const {
  int64_t rows = 0;
  for (const auto& sequence : resident_) {
    if (sequence->ended()) continue;
    rows += sequence->decoding() ? 1 : sequence->prompt_tokens() - sequence->planned();
  }
  return rows;
}

bool SequenceGroup::Runnable() const {
  return std::any_of(resident_.begin(), resident_.end(),
                     [](const auto& sequence) { return sequence->runnable(); });
}

GroupRows SequenceGroup::AddTo(internal::v1::StepPlan& plan) {
  Append(freed_slots_, plan.mutable_freed_slots());
  freed_slots_.clear();
  GroupRows total;
  PlannedStep step;
  for (const bool decoding : {true, false}) {
    for (const auto& sequence : resident_) {
      if (!sequence->runnable() || sequence->decoding() != decoding) continue;
      const int room = options_.max_step_tokens - total.rows;
      const int rows = std::min(room, LongestChunk(options_, *sequence));
      if (rows == 0) break;
      // A sequence whose prompt ends here turns to decoding; it had its rows for this step.
      AddChunk(*sequence, rows, plan, step, total);
    }
  }
  in_flight_.push_back(std::move(step));
  return total;
}

void SequenceGroup::AddChunk(Sequence& sequence, int rows, internal::v1::StepPlan& plan,
                             PlannedStep& step, GroupRows& total) {
  const int start = sequence.planned();
  if (start == 0) *plan.add_new_sequences() = sequence.Introduction();
  const BlockDelta delta = sequence.blocks().Extend(start, rows, LongestChunk(options_, sequence));
  internal::v1::Chunk chunk = sequence.NextChunk(rows);
  Append(delta.new_full, chunk.mutable_new_full_blocks());
  Append(delta.new_sliding, chunk.mutable_new_sliding_blocks());
  chunk.set_released_sliding_blocks(delta.released_sliding);
  step.push_back({.sequence = &sequence,
                  .start = start,
                  .rows = rows,
                  .sample = chunk.sample(),
                  .heads = {chunk.heads().begin(), chunk.heads().end()},
                  .targets = chunk.logprobs().targets_size(),
                  .first_target = start + static_cast<int>(chunk.logprobs().first()),
                  .top = std::min(static_cast<int>(chunk.logprobs().top()), options_.vocab_size)});
  *plan.add_chunks() = std::move(chunk);
  total.rows += rows;
  total.longest_chunk = std::max(total.longest_chunk, rows);
}

absl::Status SequenceGroup::OnResult(const internal::v1::StepResult& result, absl::Time now,
                                     std::vector<RequestId>& ended) {
  CONCLAVE_CHECK(!in_flight_.empty());
  RETURN_IF_ERROR(Check(in_flight_.front(), result));
  RETURN_IF_ERROR(CheckTargets(in_flight_.front(), result));
  const PlannedStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  ResultPlace place;
  for (const PlannedChunk& chunk : step) {
    const bool had_ended = chunk.sequence->ended();
    Deliver(chunk, result, place, now);
    counters_.tokens_computed += chunk.rows;
    if (chunk.sequence->ended() && !had_ended) {
      ended.push_back(chunk.sequence->id());
      --running_;
    }
    chunk.sequence->PlanAnswered(chunk.sample);
    if (chunk.sequence->ended() && chunk.sequence->quiet()) Release(*chunk.sequence);
  }
  return absl::OkStatus();
}

// Everything that was asked for is there, in the order of the plan, and nothing else.
absl::Status SequenceGroup::Check(const PlannedStep& step,
                                  const internal::v1::StepResult& result) const {
  int samples = 0;
  int heads = 0;
  for (const PlannedChunk& chunk : step) {
    const int slot = chunk.sequence->slot();
    if (chunk.sample) {
      const int position = chunk.start + chunk.rows;
      if (samples == result.sampled_size() ||
          static_cast<int>(result.sampled(samples).slot()) != slot ||
          static_cast<int>(result.sampled(samples).position()) != position) {
        return absl::InternalError(
            fmt::format("step {}: no token of slot {} at position {} as sample {} of {}",
                        result.step(), slot, position, samples, result.sampled_size()));
      }
      const uint32_t token = result.sampled(samples++).token();
      if (token >= static_cast<uint32_t>(options_.vocab_size)) {
        return absl::InternalError(fmt::format("step {}: sampled token {}, the vocabulary has {}",
                                               result.step(), token, options_.vocab_size));
      }
    }
    for (const internal::v1::HeadWant& want : chunk.heads) {
      const int64_t first = chunk.start + want.first();
      const int64_t values = int64_t{want.count()} * options_.head_labels[want.head()];
      if (heads == result.head_logits_size() ||
          static_cast<int>(result.head_logits(heads).slot()) != slot ||
          result.head_logits(heads).head() != want.head() ||
          result.head_logits(heads).first_position() != first ||
          result.head_logits(heads).logits_size() != values) {
        return absl::InternalError(fmt::format(
            "step {}: no {} logits of head {} of slot {} from position {} on as entry "
            "{} of {}",
            result.step(), values, want.head(), slot, first, heads, result.head_logits_size()));
      }
      ++heads;
    }
  }
  if (samples != result.sampled_size() || heads != result.head_logits_size()) {
    return absl::InternalError(fmt::format(
        "step {}: {} samples and {} head entries, {} and {} were asked for", result.step(),
        result.sampled_size(), result.head_logits_size(), samples, heads));
  }
  return absl::OkStatus();
}

absl::Status SequenceGroup::CheckTargets(const PlannedStep& step,
                                         const internal::v1::StepResult& result) const {
  int entries = 0;
  for (const PlannedChunk& chunk : step) {
    if (chunk.targets == 0) continue;
    const int slot = chunk.sequence->slot();
    const int top = chunk.targets * chunk.top;
    if (entries == result.target_logprobs_size() ||
        static_cast<int>(result.target_logprobs(entries).slot()) != slot ||
        static_cast<int>(result.target_logprobs(entries).first_position()) != chunk.first_target ||
        result.target_logprobs(entries).logprobs_size() != chunk.targets ||
        result.target_logprobs(entries).top_tokens_size() != top ||
        result.target_logprobs(entries).top_logprobs_size() != top) {
      return absl::InternalError(fmt::format(
          "step {}: no {} log-probabilities of slot {} from position {} on, {} most likely each, "
          "as entry {} of {}",
          result.step(), chunk.targets, slot, chunk.first_target, chunk.top, entries,
          result.target_logprobs_size()));
    }
    ++entries;
  }
  if (entries == result.target_logprobs_size()) return absl::OkStatus();
  return absl::InternalError(
      fmt::format("step {}: {} entries of log-probabilities, {} were asked "
                  "for",
                  result.step(), result.target_logprobs_size(), entries));
}

void SequenceGroup::Deliver(const PlannedChunk& chunk, const internal::v1::StepResult& result,
                            ResultPlace& place, absl::Time now) {
  Sequence& sequence = *chunk.sequence;
  const int first_head = place.head;
  place.head += static_cast<int>(chunk.heads.size());
  const int target = place.target;
  if (chunk.targets > 0) ++place.target;
  if (sequence.ended()) {
    if (chunk.sample) ++place.sample, ++counters_.overrun_tokens;
    return;
  }
  for (int i = first_head; i < place.head; ++i) sequence.AcceptHeadLogits(result.head_logits(i));
  if (chunk.targets > 0) sequence.AcceptTargetLogprobs(result.target_logprobs(target));
  if (chunk.sample) {
    sequence.AcceptToken(result.sampled(place.sample++), options_.eos_token_ids, now, counters_);
  }
  sequence.AcceptComputed(chunk.start + chunk.rows, now, counters_);
}

void SequenceGroup::End(Sequence& sequence, const absl::Status& status, FinishReason reason,
                        absl::Time now) {
  sequence.End(status, reason, now, counters_);
  --running_;
  if (sequence.quiet()) Release(sequence);
}

void SequenceGroup::FailAll(const absl::Status& status, absl::Time now) {
  for (const auto& sequence : resident_) {
    if (!sequence->ended()) sequence->End(status, FinishReason::kStop, now, counters_);
  }
  running_ = 0;
  resident_.clear();
  in_flight_.clear();
}

// Destroys the sequence; its blocks return to the pools.
void SequenceGroup::Release(Sequence& sequence) {
  free_slots_.push_back(sequence.slot());
  if (sequence.planned() > 0) freed_slots_.push_back(sequence.slot());
  const auto entry = std::find_if(resident_.begin(), resident_.end(),
                                  [&](const auto& other) { return other.get() == &sequence; });
  CONCLAVE_CHECK(entry != resident_.end());
  resident_.erase(entry);
}

}  // namespace conclave::coordinator
