#include "coordinator/sequence_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

// Prompts of at most this many rows count as short. Texts to classify are; they need not wait until
// every chunk of a long prompt is through.
constexpr int kShortPromptRows = 64;

// One slot in so many is for sequences that only read heads, if there are any: those leave after a
// step or two, and do not wait for a slot that a long generation holds.
constexpr int kGenerationSlotsPerHeadSlot = 8;

template <typename Ids, typename Repeated>
void Append(const Ids& ids, Repeated* repeated) {
  for (int id : ids) repeated->Add(id);
}

int CountIdle(const BlockPool& pool, const std::vector<int>& blocks) {
  return static_cast<int>(std::count_if(blocks.begin(), blocks.end(),
                                        [&pool](int block) { return pool.holders(block) == 0; }));
}

}  // namespace

SequenceGroup::SequenceGroup(const SchedulerOptions& options, const internal::v1::CacheShape& cache,
                             SchedulerCounters& counters)
    : options_(options),
      counters_(counters),
      max_sequences_(static_cast<int>(cache.max_sequences())),
      pools_(std::make_unique<KvPools>(static_cast<int>(cache.full_blocks()),
                                       static_cast<int>(cache.sliding_blocks()), options.window)) {
  for (int slot = max_sequences_ - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

// The longest chunk of the sequence from its next position on.
int SequenceGroup::LongestChunk(const Sequence& sequence) const {
  if (sequence.decoding()) return 1;
  return std::min(options_.prefill_chunk, sequence.prefill_end() - sequence.planned());
}

bool SequenceGroup::SlotFor(const Sequence& sequence) const {
  if (free_slots_.empty()) return false;
  if (!sequence.generates() || options_.head_labels.empty()) return true;
  return generating_ < max_sequences_ - max_sequences_ / kGenerationSlotsPerHeadSlot;
}

// New blocks for the tokens it brings and the first that it generates.
BlockCount SequenceGroup::NeededBy(const Sequence& sequence, const PrefixCache::Hit& hit) const {
  const int tokens = static_cast<int>(sequence.tokens().size());
  const int chunk = std::min(options_.prefill_chunk, tokens - hit.tokens);
  // A longer chunk than the pool holds is cut.
  const int sliding =
      std::min(PeakSlidingBlocks(tokens, chunk, options_.window), pools_->sliding.total());
  return {.full = BlocksOf(std::min(tokens + 1, sequence.compute_limit())) -
                  static_cast<int>(hit.full.size()),
          .sliding = sliding - static_cast<int>(hit.sliding.size())};
}

SequenceGroup::Offer SequenceGroup::Consider(const Sequence& sequence) const {
  Offer offer;
  if (!SlotFor(sequence)) return offer;
  if (options_.prefix_cache) {
    offer.hit = pools_->cache.Find(sequence.tokens(), sequence.CacheLimit());
  }
  const BlockCount needed = NeededBy(sequence, offer.hit);
  // Every running sequence may want its next block at any moment.
  const int full =
      pools_->full.available() - owed_.full - running_ - CountIdle(pools_->full, offer.hit.full);
  const int sliding = pools_->sliding.available() - owed_.sliding - running_ -
                      CountIdle(pools_->sliding, offer.hit.sliding);
  const bool fits = needed.full <= full && needed.sliding <= sliding;
  offer.answer = fits ? Offer::Answer::kFits : Offer::Answer::kNoBlocks;
  return offer;
}

void SequenceGroup::Admit(std::unique_ptr<Sequence> sequence, const PrefixCache::Hit& hit,
                          absl::Time now) {
  CONCLAVE_CHECK(!free_slots_.empty());
  sequence->owed = NeededBy(*sequence, hit);
  owed_.full += sequence->owed.full;
  owed_.sliding += sequence->owed.sliding;
  sequence->blocks().Begin(*pools_, hit, options_.prefix_cache && sequence->cacheable());
  sequence->Admitted(free_slots_.back(), hit.tokens, now, counters_);
  free_slots_.pop_back();
  ++running_;
  generating_ += sequence->generates() ? 1 : 0;
  const auto place = std::find_if(resident_.rbegin(), resident_.rend(), [&](const auto& other) {
                       return other->RanksAbove(*sequence);
                     }).base();
  resident_.insert(place, std::move(sequence));
}

int64_t SequenceGroup::Load() const {
  int64_t rows = 0;
  for (const auto& sequence : resident_) {
    if (sequence->ended()) continue;
    rows += sequence->decoding() ? 1 : sequence->prefill_end() - sequence->planned();
  }
  return rows;
}

GroupRows SequenceGroup::AddTo(internal::v1::StepPlan& plan) {
  GroupRows total;
  forming_.clear();
  AddPass(Pass::kDecode, plan, total);
  if (plan_ % 2 == 0) AddPass(Pass::kShortPrompts, plan, total);
  AddPass(Pass::kPrompts, plan, total);
  return total;
}

void SequenceGroup::Commit(internal::v1::StepPlan& plan) {
  Append(freed_slots_, plan.mutable_freed_slots());
  freed_slots_.clear();
  in_flight_.push_back(std::move(forming_));
  forming_ = {};
  ++plan_;
}

// A sequence whose prompt ends in this plan turns to decoding; it had its rows for this step.
bool SequenceGroup::BelongsTo(Pass pass, const Sequence& sequence) const {
  if (!sequence.runnable() || sequence.last_plan == plan_) return false;
  if (pass == Pass::kDecode) return sequence.decoding();
  if (sequence.decoding()) return false;
  return pass == Pass::kPrompts || sequence.prefill_end() <= kShortPromptRows;
}

// Whoever is preempted ranks below, so stands behind: indices stay valid.
void SequenceGroup::AddPass(Pass pass, internal::v1::StepPlan& plan, GroupRows& total) {
  for (size_t i = 0; i < resident_.size() && total.rows < options_.max_step_tokens; ++i) {
    Sequence& sequence = *resident_[i];
    if (!BelongsTo(pass, sequence)) continue;
    if (!MakeRoomFor(sequence)) continue;
    const int wanted = std::min(options_.max_step_tokens - total.rows, LongestChunk(sequence));
    const int rows = sequence.blocks().RowsThatFit(sequence.planned(), wanted);
    AddChunk(sequence, rows, plan, total);
  }
}

void SequenceGroup::AddChunk(Sequence& sequence, int rows, internal::v1::StepPlan& plan,
                             GroupRows& total) {
  const int start = sequence.planned();
  if (!sequence.introduced()) sequence.Introduce(*plan.add_new_sequences());
  const BlockDelta delta = sequence.blocks().Extend(start, rows);
  internal::v1::Chunk* chunk = sequence.AddChunk(rows, plan);
  Append(delta.new_full, chunk->mutable_new_full_blocks());
  Append(delta.new_sliding, chunk->mutable_new_sliding_blocks());
  chunk->set_released_sliding_blocks(delta.released_sliding);
  const BlockCount owed = sequence.owed;
  const int taken = static_cast<int>(delta.new_full.size());
  const int taken_sliding = static_cast<int>(delta.new_sliding.size());
  SettleOwed(sequence, sequence.decoding()
                           ? BlockCount()
                           : BlockCount{.full = std::max(0, owed.full - taken),
                                        .sliding = std::max(0, owed.sliding - taken_sliding)});
  sequence.EnterInCache();
  sequence.last_plan = plan_;
  forming_.push_back(
      {.sequence = &sequence,
       .start = start,
       .rows = rows,
       .sample = chunk->sample(),
       .heads = {chunk->heads().begin(), chunk->heads().end()},
       .targets = chunk->logprobs().targets_size(),
       .first_target = start + static_cast<int>(chunk->logprobs().first()),
       .top = std::min(static_cast<int>(chunk->logprobs().top()), options_.vocab_size)});
  total.rows += rows;
  total.longest_chunk = std::max(total.longest_chunk, rows);
}

void SequenceGroup::SettleOwed(Sequence& sequence, BlockCount owed) {
  owed_.full += owed.full - sequence.owed.full;
  owed_.sliding += owed.sliding - sequence.owed.sliding;
  sequence.owed = owed;
}

// Whether a row of it fits now. If not, sequences below it are preempted until it will, once the
// plans that contain them are answered.
bool SequenceGroup::MakeRoomFor(const Sequence& sequence) {
  const auto lacking = [&] { return sequence.blocks().Lacking(sequence.planned()); };
  for (BlockCount lack = lacking(); lack.full + lack.sliding > 0; lack = lacking()) {
    const BlockCount returning = Returning();
    if (returning.full >= lack.full && returning.sliding >= lack.sliding) return false;
    Sequence* victim = LowestBelow(sequence);
    if (victim == nullptr) return false;
    victim->Preempt();
    ++counters_.preemptions;
    LeaveIfDone(*victim);
  }
  return true;
}

// Blocks of sequences that wait for the answers of plans, to give them back.
BlockCount SequenceGroup::Returning() const {
  BlockCount total;
  for (const auto& sequence : resident_) {
    if (!sequence->ended() && !sequence->preempted()) continue;
    const BlockCount held = sequence->blocks().Exclusive();
    total.full += held.full;
    total.sliding += held.sliding;
  }
  return total;
}

Sequence* SequenceGroup::LowestBelow(const Sequence& sequence) {
  for (auto other = resident_.rbegin(); other != resident_.rend(); ++other) {
    if (!sequence.RanksAbove(**other)) return nullptr;
    if ((*other)->ended() || (*other)->preempted()) continue;
    return other->get();
  }
  return nullptr;
}

absl::Status SequenceGroup::OnResult(const internal::v1::StepResult& result, absl::Time now,
                                     std::vector<Ended>& ended) {
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
      ended.push_back({chunk.sequence->id(), chunk.sequence->tokens_to_come()});
      --running_;
    }
    chunk.sequence->PlanAnswered(chunk.sample);
    LeaveIfDone(*chunk.sequence);
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
  LeaveIfDone(sequence);
}

void SequenceGroup::PreemptAll() {
  CONCLAVE_CHECK(in_flight_.empty());
  while (!resident_.empty()) {
    Sequence& sequence = *resident_.back();
    sequence.Preempt();
    ++counters_.preemptions;
    LeaveIfDone(sequence);
  }
}

std::vector<std::unique_ptr<Sequence>> SequenceGroup::TakePreempted() {
  return std::exchange(withdrawn_, {});
}

// A sequence that has ended or was preempted leaves when no plan contains it any more. One that has
// ended is destroyed: its blocks return to the pools.
void SequenceGroup::LeaveIfDone(Sequence& sequence) {
  if (!sequence.quiet() || (!sequence.ended() && !sequence.preempted())) return;
  std::unique_ptr<Sequence> leaving = Remove(sequence);
  leaving->EnterInCache();
  if (leaving->ended()) return;
  --running_;
  leaving->Withdraw();
  withdrawn_.push_back(std::move(leaving));
}

std::unique_ptr<Sequence> SequenceGroup::Remove(Sequence& sequence) {
  free_slots_.push_back(sequence.slot());
  if (sequence.introduced()) freed_slots_.push_back(sequence.slot());
  generating_ -= sequence.generates() ? 1 : 0;
  SettleOwed(sequence, {});
  const auto entry = std::find_if(resident_.begin(), resident_.end(),
                                  [&](const auto& other) { return other.get() == &sequence; });
  CONCLAVE_CHECK(entry != resident_.end());
  std::unique_ptr<Sequence> removed = std::move(*entry);
  resident_.erase(entry);
  return removed;
}

}  // namespace conclave::coordinator
