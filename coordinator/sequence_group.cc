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

// How far ahead of its turn a sequence is fetched, and what its fields point to.
constexpr size_t kFieldsAhead = 8;
constexpr size_t kAnswerAhead = 4;

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
                                       static_cast<int>(cache.sliding_blocks()), options.window)),
      slots_(max_sequences_) {
  for (int slot = max_sequences_ - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

// The longest chunk of the sequence from its next position on.
int SequenceGroup::LongestChunk(const Sequence& sequence) const {
  if (sequence.decoding()) return 1;
  return std::min(options_.prefill_chunk, sequence.prefill_end() - sequence.planned());
}

bool SequenceGroup::HasSlot(bool generates) const {
  if (free_slots_.empty()) return false;
  if (!generates || options_.head_labels.empty()) return true;
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
  if (!HasSlot(sequence.generates())) return offer;
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
  const auto place = std::find_if(resident_.rbegin(), resident_.rend(), [&](const Sequence* other) {
                       return other->RanksAbove(*sequence);
                     }).base();
  resident_.insert(place, sequence.get());
  slots_[sequence->slot()] = std::move(sequence);
}

int64_t SequenceGroup::Load() const {
  int64_t rows = 0;
  for (const Sequence* sequence : resident_) {
    if (sequence->ended()) continue;
    rows += sequence->decoding() ? 1 : sequence->prefill_end() - sequence->planned();
  }
  return rows;
}

GroupRows SequenceGroup::AddTo(internal::v1::StepPlan& plan) {
  GroupRows total;
  forming_.chunks.clear();
  forming_.heads.clear();
  AddDecodeRows(plan, total);
  if (plan_ % 2 == 0) AddPrompts(kShortPromptRows, plan, total);
  AddPrompts(options_.context_length, plan, total);
  return total;
}

void SequenceGroup::Commit(internal::v1::StepPlan& plan) {
  Append(freed_slots_, plan.mutable_freed_slots());
  freed_slots_.clear();
  in_flight_.push_back(std::move(forming_));
  forming_ = std::exchange(spare_, {});
  ++plan_;
}

// Whoever is preempted ranks below, so stands behind: indices stay valid.
void SequenceGroup::AddDecodeRows(internal::v1::StepPlan& plan, GroupRows& total) {
  prompts_.clear();
  for (size_t i = 0; i < resident_.size() && total.rows < options_.max_step_tokens; ++i) {
    if (i + kFieldsAhead < resident_.size()) resident_[i + kFieldsAhead]->PrefetchFields();
    Sequence& sequence = *resident_[i];
    if (!sequence.runnable()) continue;
    if (sequence.decoding()) {
      AddRows(sequence, plan, total);
    } else {
      prompts_.push_back(&sequence);
    }
  }
}

void SequenceGroup::AddPrompts(int longest, internal::v1::StepPlan& plan, GroupRows& total) {
  for (Sequence* sequence : prompts_) {
    if (total.rows >= options_.max_step_tokens) return;
    const bool left = sequence->slot() < 0 || !sequence->runnable();  // preempted meanwhile
    if (left || sequence->last_plan == plan_ || sequence->prefill_end() > longest) continue;
    AddRows(*sequence, plan, total);
  }
}

void SequenceGroup::AddRows(Sequence& sequence, internal::v1::StepPlan& plan, GroupRows& total) {
  const bool covered = sequence.planned() < sequence.blocks().covered();
  if (!covered && !MakeRoomFor(sequence)) return;
  const int wanted = std::min(options_.max_step_tokens - total.rows, LongestChunk(sequence));
  const int rows = sequence.blocks().RowsThatFit(sequence.planned(), wanted);
  AddChunk(sequence, rows, plan, total);
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
  if (sequence.owed.full + sequence.owed.sliding > 0) SettleTaken(sequence, delta);
  sequence.EnterInCache();
  sequence.last_plan = plan_;
  Expect(sequence, start, rows, *chunk);
  total.rows += rows;
  total.longest_chunk = std::max(total.longest_chunk, rows);
}

void SequenceGroup::Expect(Sequence& sequence, int start, int rows,
                           const internal::v1::Chunk& chunk) {
  PlannedChunk& planned = forming_.chunks.emplace_back();
  planned.sequence = &sequence;
  planned.slot = sequence.slot();
  planned.start = start;
  planned.rows = rows;
  planned.sample = chunk.sample();
  planned.heads = chunk.heads_size();
  for (const internal::v1::HeadWant& want : chunk.heads()) {
    forming_.heads.push_back({.head = static_cast<int>(want.head()),
                              .first = start + static_cast<int>(want.first()),
                              .count = static_cast<int>(want.count())});
  }
  if (!chunk.has_logprobs()) return;
  const internal::v1::LogprobWant& logprobs = chunk.logprobs();
  planned.targets = logprobs.targets_size();
  planned.first_target = start + static_cast<int>(logprobs.first());
  planned.top = std::min(static_cast<int>(logprobs.top()), options_.vocab_size);
}

// What was promised for a prompt is no longer when it is taken, or the prompt is computed.
void SequenceGroup::SettleTaken(Sequence& sequence, const BlockDelta& delta) {
  BlockCount owed;
  if (!sequence.decoding()) {
    owed.full = std::max(0, sequence.owed.full - static_cast<int>(delta.new_full.size()));
    owed.sliding = std::max(0, sequence.owed.sliding - static_cast<int>(delta.new_sliding.size()));
  }
  SettleOwed(sequence, owed);
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
    if (victim->leaving()) Leave(*victim);
  }
  return true;
}

// Blocks of sequences that wait for the answers of plans, to give them back.
BlockCount SequenceGroup::Returning() const {
  BlockCount total;
  for (const Sequence* sequence : resident_) {
    if (!sequence->ended() && !sequence->preempted()) continue;
    const BlockCount held = sequence->blocks().Exclusive();
    total.full += held.full;
    total.sliding += held.sliding;
  }
  return total;
}

Sequence* SequenceGroup::LowestBelow(const Sequence& sequence) {
  const auto lowest = std::find_if(resident_.rbegin(), resident_.rend(), [](const Sequence* other) {
    return !other->ended() && !other->preempted();
  });
  return lowest != resident_.rend() && sequence.RanksAbove(**lowest) ? *lowest : nullptr;
}

absl::Status SequenceGroup::OnResult(const internal::v1::StepResult& result, absl::Time now,
                                     std::vector<Ended>& ended) {
  CONCLAVE_CHECK(!in_flight_.empty());
  RETURN_IF_ERROR(Check(in_flight_.front(), result));
  spare_ = std::move(in_flight_.front());
  in_flight_.pop_front();
  ResultPlace place;
  const std::vector<PlannedChunk>& chunks = spare_.chunks;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (i + kFieldsAhead < chunks.size()) chunks[i + kFieldsAhead].sequence->PrefetchFields();
    if (i + kAnswerAhead < chunks.size()) chunks[i + kAnswerAhead].sequence->PrefetchAnswer();
    const PlannedChunk& chunk = chunks[i];
    Sequence& sequence = *chunk.sequence;
    const bool had_ended = sequence.ended();
    Deliver(chunk, result, place, now);
    counters_.tokens_computed += chunk.rows;
    if (sequence.ended() && !had_ended) {
      ended.push_back({sequence.id(), sequence.tokens_to_come()});
      --running_;
    }
    sequence.PlanAnswered(chunk.sample);
    if (sequence.leaving()) Leave(sequence);
  }
  return absl::OkStatus();
}

// Everything that was asked for is there, in the order of the plan, and nothing else.
absl::Status SequenceGroup::Check(const PlannedStep& step,
                                  const internal::v1::StepResult& result) const {
  ResultPlace place;
  for (const PlannedChunk& chunk : step.chunks) {
    if (chunk.sample) RETURN_IF_ERROR(CheckSample(chunk, result, place.sample++));
    for (int i = 0; i < chunk.heads; ++i, ++place.head) {
      RETURN_IF_ERROR(CheckHead(chunk, step.heads[place.head], result, place.head));
    }
    if (chunk.targets > 0) RETURN_IF_ERROR(CheckTargets(chunk, result, place.target++));
  }
  if (place.sample == result.sampled_size() && place.head == result.head_logits_size() &&
      place.target == result.target_logprobs_size()) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      fmt::format("step {}: {} samples, {} head entries and {} entries of log-probabilities, {}, "
                  "{} and {} were "
                  "asked for",
                  result.step(), result.sampled_size(), result.head_logits_size(),
                  result.target_logprobs_size(), place.sample, place.head, place.target));
}

absl::Status SequenceGroup::CheckSample(const PlannedChunk& chunk,
                                        const internal::v1::StepResult& result, int sample) const {
  const int position = chunk.start + chunk.rows;
  if (sample == result.sampled_size() ||
      static_cast<int>(result.sampled(sample).slot()) != chunk.slot ||
      static_cast<int>(result.sampled(sample).position()) != position) {
    return absl::InternalError(
        fmt::format("step {}: no token of slot {} at position {} as sample {} of {}", result.step(),
                    chunk.slot, position, sample, result.sampled_size()));
  }
  const uint32_t token = result.sampled(sample).token();
  if (token < static_cast<uint32_t>(options_.vocab_size)) return absl::OkStatus();
  return absl::InternalError(fmt::format("step {}: sampled token {}, the vocabulary has {}",
                                         result.step(), token, options_.vocab_size));
}

absl::Status SequenceGroup::CheckHead(const PlannedChunk& chunk, const HeadRead& read,
                                      const internal::v1::StepResult& result, int head) const {
  const int64_t values = int64_t{read.count} * options_.head_labels[read.head];
  if (head < result.head_logits_size() &&
      static_cast<int>(result.head_logits(head).slot()) == chunk.slot &&
      static_cast<int>(result.head_logits(head).head()) == read.head &&
      static_cast<int>(result.head_logits(head).first_position()) == read.first &&
      result.head_logits(head).logits_size() == values) {
    return absl::OkStatus();
  }
  return absl::InternalError(fmt::format(
      "step {}: no {} logits of head {} of slot {} from position {} on as entry {} of {}",
      result.step(), values, read.head, chunk.slot, read.first, head, result.head_logits_size()));
}

absl::Status SequenceGroup::CheckTargets(const PlannedChunk& chunk,
                                         const internal::v1::StepResult& result, int target) const {
  const int top = chunk.targets * chunk.top;
  if (target < result.target_logprobs_size() &&
      static_cast<int>(result.target_logprobs(target).slot()) == chunk.slot &&
      static_cast<int>(result.target_logprobs(target).first_position()) == chunk.first_target &&
      result.target_logprobs(target).logprobs_size() == chunk.targets &&
      result.target_logprobs(target).top_tokens_size() == top &&
      result.target_logprobs(target).top_logprobs_size() == top) {
    return absl::OkStatus();
  }
  return absl::InternalError(fmt::format(
      "step {}: no {} log-probabilities of slot {} from position {} on, {} most likely each, as "
      "entry {} of {}",
      result.step(), chunk.targets, chunk.slot, chunk.first_target, chunk.top, target,
      result.target_logprobs_size()));
}

void SequenceGroup::Deliver(const PlannedChunk& chunk, const internal::v1::StepResult& result,
                            ResultPlace& place, absl::Time now) {
  Sequence& sequence = *chunk.sequence;
  const int first_head = place.head;
  place.head += chunk.heads;
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
  if (sequence.leaving()) Leave(sequence);
}

void SequenceGroup::PreemptAll() {
  CONCLAVE_CHECK(in_flight_.empty());
  while (!resident_.empty()) {
    Sequence& sequence = *resident_.back();
    sequence.Preempt();
    ++counters_.preemptions;
    Leave(sequence);
  }
}

std::vector<std::unique_ptr<Sequence>> SequenceGroup::TakePreempted() {
  return std::exchange(withdrawn_, {});
}

// One that has ended is destroyed: its blocks return to the pools.
void SequenceGroup::Leave(Sequence& sequence) {
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
  const auto entry = std::find(resident_.begin(), resident_.end(), &sequence);
  CONCLAVE_CHECK(entry != resident_.end());
  resident_.erase(entry);
  return std::move(slots_[sequence.slot()]);
}

}  // namespace conclave::coordinator
