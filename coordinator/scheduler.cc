#include "coordinator/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

// Admissions of the other kind of request, at most, while one waits for blocks: those could take
// what is freed before it is enough.
constexpr int kMaxPassedOver = 64;

// A request is refused when it would wait for more than this many times what is left until its
// deadline: the pace of admissions is an estimate, and refusing what would have been served is
// worse than serving too late.
constexpr int kWaitDoubt = 2;

// Of RetryDelay: by then this part of the queue has been admitted, within these limits.
constexpr int kRetryPart = 8;
constexpr absl::Duration kRetryUnknown = absl::Seconds(1);
constexpr absl::Duration kRetryLeast = absl::Milliseconds(100);
constexpr absl::Duration kRetryMost = absl::Seconds(60);

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, const base::Clock& clock)
    : options_(options),
      policy_(*ExchangePolicy::Create(options.exchange, options.shape, options.max_step_tokens)),
      clock_(clock),
      lanes_{Lane(shares_), Lane(shares_)} {
  CONCLAVE_CHECK(CheckSchedulerOptions(options).ok());
}

void Scheduler::BeginEpoch(uint64_t epoch, const internal::v1::CacheShape& cache) {
  CONCLAVE_CHECK(!epoch_.has_value());
  StartEpoch(epoch);
  EndUnfit(cache);
  groups_.clear();
  for (int group = 0; group < options_.shape.dp; ++group) {
    groups_.push_back(std::make_unique<SequenceGroup>(options_, cache, counters_));
  }
}

void Scheduler::EndUnfit(const internal::v1::CacheShape& cache) {
  std::vector<RequestId> unfit;
  for (const auto& [id, tracked] : tracked_) {
    const Sequence& sequence = *tracked.sequence;
    const BlockCount needed =
        PeakBlocks(sequence.compute_limit(),
                   std::min(options_.prefill_chunk, static_cast<int>(sequence.tokens().size())),
                   options_.window);
    if (needed.full > static_cast<int>(cache.full_blocks()) ||
        needed.sliding > static_cast<int>(cache.sliding_blocks())) {
      unfit.push_back(id);
    }
  }
  for (RequestId id : unfit) {
    End(id,
        absl::UnavailableError("the group of workers was formed anew with a KV cache that is too "
                               "small for this request; what was sent until now is a prefix of "
                               "the output"),
        FinishReason::kStop);
  }
  // Nothing was to be expected of the time between the epochs.
  progress_.SetBusy(false, clock_.Now());
  UpdateBusy(clock_.Now());
}

void Scheduler::Suspend() {
  CONCLAVE_CHECK(in_epoch() && plans_in_flight() == 0);
  for (const auto& group : groups_) {
    group->PreemptAll();
    Requeue(*group);
  }
  CloseEpoch();
}

void Scheduler::CloseEpoch() {
  for (const auto& group : groups_) {
    counters_.evicted_blocks += group->pools().cache.evicted_blocks();
  }
  groups_.clear();
  in_flight_.clear();
  epoch_.reset();
  held_ = false;
  UpdateBusy(clock_.Now());
}

void Scheduler::ContinueEpoch(uint64_t epoch) {
  CONCLAVE_CHECK(in_epoch() && plans_in_flight() == 0);
  StartEpoch(epoch);
}

void Scheduler::StartEpoch(uint64_t epoch) {
  epoch_ = epoch;
  held_ = false;
  next_step_ = 0;
  next_answer_.assign(options_.shape.world(), 0);
}

void Scheduler::EndAll(const absl::Status& status) {
  std::vector<RequestId> open;
  for (const auto& [id, tracked] : tracked_) open.push_back(id);
  std::sort(open.begin(), open.end());
  for (RequestId id : open) End(id, status, FinishReason::kStop);
}

void Scheduler::FailAll(const absl::Status& status) {
  EndAll(status);
  CloseEpoch();
}

void Scheduler::Submit(RequestId id, Request request, std::optional<RequestId> leader) {
  CONCLAVE_CHECK(in_epoch());
  const absl::Time now = clock_.Now();
  auto sequence = std::make_unique<Sequence>(id, std::move(request), options_.context_length, now);
  Lane& lane = LaneOf(*sequence);
  const absl::Time deadline = sequence->deadline();
  const absl::Duration least = LeastTime(*sequence);
  if (deadline != absl::InfiniteFuture()) {
    const absl::Duration wait =
        lane.pace.Gap() * lane.queue.Ahead(sequence->request().priority, sequence->request().user);
    if (wait / kWaitDoubt + least > deadline - now) {
      ++counters_.requests_refused_early;
      sequence->End(
          absl::DeadlineExceededError(fmt::format(
              "the deadline is in {:.3f} s: the request would wait for about {:.3f} s, and "
              "take {:.3f} s at least",
              absl::ToDoubleSeconds(deadline - now), absl::ToDoubleSeconds(wait),
              absl::ToDoubleSeconds(least))),
          FinishReason::kStop, now, counters_);
      return;
    }
  }
  tracked_[id] = {.sequence = sequence.get(),
                  .group = -1,
                  .user = sequence->request().user,
                  .expiry = absl::InfiniteFuture(),
                  .leader = std::nullopt};
  SetExpiry(id, deadline - least);
  shares_.Open(sequence->request().user);
  if (options_.prefix_cache && leader.has_value() && tracked_.contains(*leader)) {
    tracked_[id].leader = leader;
    followers_[*leader].push_back(std::move(sequence));
  } else {
    lane.queue.Add(std::move(sequence));
  }
  UpdateBusy(now);
}

// What no luck can shorten: steps as short as the shortest of late, with nobody else in them.
absl::Duration Scheduler::LeastTime(const Sequence& sequence) const {
  const int chunk = std::min(options_.prefill_chunk, options_.max_step_tokens);
  int64_t steps = (sequence.prompt_tokens() + chunk - 1) / chunk;
  if (options_.prefix_cache) steps = 1;
  if (sequence.runs_to_its_limit()) steps += sequence.tokens_to_come() - 1;
  return progress_.ShortestStep() * steps;
}

void Scheduler::Cancel(RequestId id) { End(id, absl::OkStatus(), FinishReason::kCancelled); }

void Scheduler::Expire() {
  const absl::Time now = clock_.Now();
  while (!expiries_.empty() && expiries_.begin()->first <= now) {
    const RequestId id = expiries_.begin()->second;
    const absl::Time deadline = tracked_.at(id).sequence->deadline();
    if (deadline > now) ++counters_.requests_refused_early;
    End(id,
        absl::DeadlineExceededError(
            deadline > now ? "the request waits and can no longer be computed by its deadline"
                           : "the request's deadline passed"),
        FinishReason::kStop);
  }
}

absl::Time Scheduler::NextDeadline() const {
  return expiries_.empty() ? absl::InfiniteFuture() : expiries_.begin()->first;
}

void Scheduler::SetExpiry(RequestId id, absl::Time expiry) {
  Tracked& tracked = tracked_.at(id);
  expiries_.erase({tracked.expiry, id});
  tracked.expiry = expiry;
  if (expiry != absl::InfiniteFuture()) expiries_.emplace(expiry, id);
}

void Scheduler::End(RequestId id, const absl::Status& status, FinishReason reason) {
  const auto entry = tracked_.find(id);
  if (entry == tracked_.end()) return;
  const Tracked tracked = entry->second;
  const absl::Time now = clock_.Now();
  Forget(id, tracked.sequence->tokens_to_come());
  if (tracked.group >= 0) {
    groups_[tracked.group]->End(*tracked.sequence, status, reason, now);
    return UpdateBusy(now);
  }
  tracked.sequence->End(status, reason, now, counters_);
  if (tracked.leader.has_value()) {
    auto& waiting = followers_.at(*tracked.leader);
    std::erase_if(waiting, [&](const auto& other) { return other.get() == tracked.sequence; });
    if (waiting.empty()) followers_.erase(*tracked.leader);
  } else {
    LaneOf(*tracked.sequence).queue.Remove(id);
  }
  UpdateBusy(now);
}

// The request has ended, and its sequence may be gone, or is about to.
void Scheduler::Forget(RequestId id, int unused_tokens) {
  const auto entry = tracked_.find(id);
  CONCLAVE_CHECK(entry != tracked_.end());
  const Tracked& tracked = entry->second;
  if (tracked.group >= 0) shares_.Refund(tracked.user, unused_tokens);
  shares_.Close(tracked.user);
  expiries_.erase({tracked.expiry, id});
  tracked_.erase(entry);
  ReleaseFollowersOf(id);
}

void Scheduler::ReleaseFollowersOf(RequestId leader) {
  const auto entry = followers_.find(leader);
  if (entry == followers_.end()) return;
  for (auto& sequence : entry->second) {
    tracked_.at(sequence->id()).leader.reset();
    LaneOf(*sequence).queue.Add(std::move(sequence));
  }
  followers_.erase(entry);
}

// A leader whose prompt is in plans already sent has all of it in the cache of its group.
void Scheduler::ReleaseFollowers() {
  std::vector<RequestId> ready;
  for (const auto& [leader, waiting] : followers_) {
    const Tracked& tracked = tracked_.at(leader);
    if (tracked.group >= 0 && tracked.sequence->decoding()) ready.push_back(leader);
  }
  for (RequestId leader : ready) ReleaseFollowersOf(leader);
}

const WorldPlan* Scheduler::NextPlan() {
  if (!in_epoch() || held_ || plans_in_flight() >= options_.pipeline_depth) return nullptr;
  AdmitQueued(clock_.Now());
  plan_.step = next_step_;
  plan_.groups.resize(groups_.size());
  std::vector<GroupRows> rows;
  int total = 0;
  for (size_t group = 0; group < groups_.size(); ++group) {
    plan_.groups[group].Clear();
    rows.push_back(groups_[group]->AddTo(plan_.groups[group]));
    total += rows.back().rows;
    Requeue(*groups_[group]);
  }
  if (total == 0) return nullptr;
  ++next_step_;
  ReleaseFollowers();
  const ExchangeDecision decision = policy_.Decide(rows);
  for (size_t group = 0; group < groups_.size(); ++group) {
    internal::v1::StepPlan& plan = plan_.groups[group];
    groups_[group]->Commit(plan);
    plan.set_epoch(*epoch_);
    plan.set_step(plan_.step);
    plan.set_exchange_mode(decision.mode);
    plan.set_bucket(decision.bucket);
  }
  in_flight_.push_back({.step = plan_.step, .answers = 0, .longest = absl::ZeroDuration()});
  counters_.max_plans_in_flight = std::max(counters_.max_plans_in_flight, plans_in_flight());
  return &plan_;
}

// In turns, until the next of each kind finds no room.
void Scheduler::AdmitQueued(absl::Time now) {
  if (lanes_[0].queue.empty() && lanes_[1].queue.empty()) return;
  std::vector<int64_t> loads;
  // One group alone is not compared with any other.
  for (const auto& group : groups_) loads.push_back(groups_.size() > 1 ? group->Load() : 0);
  for (bool admitted = true; admitted;) {
    admitted = AdmitNext(lanes_[0], lanes_[1], loads, now);
    admitted |= AdmitNext(lanes_[1], lanes_[0], loads, now);
  }
  for (Lane& lane : lanes_) {
    if (lane.queue.empty()) lane.pace.Idle();
  }
}

bool Scheduler::AdmitNext(Lane& lane, Lane& other, std::vector<int64_t>& loads, absl::Time now) {
  // Whom to admit is not asked in the many steps in which nobody can be.
  const bool generates = &lane == &lanes_[0];
  const bool slot = std::any_of(groups_.begin(), groups_.end(), [generates](const auto& group) {
    return group->HasSlot(generates);
  });
  Sequence* next = slot ? lane.queue.Next() : nullptr;
  lane.lacks_blocks &= next != nullptr;
  if (next == nullptr || (other.lacks_blocks && other.passed_over >= kMaxPassedOver)) return false;
  int best = -1;
  int64_t best_rows = std::numeric_limits<int64_t>::max();
  SequenceGroup::Offer best_offer;
  bool lacks_blocks = false;
  for (size_t group = 0; group < groups_.size(); ++group) {
    SequenceGroup::Offer offer = groups_[group]->Consider(*next);
    lacks_blocks |= offer.answer == SequenceGroup::Offer::Answer::kNoBlocks;
    const int64_t rows =
        loads[group] + static_cast<int64_t>(next->tokens().size()) - offer.hit.tokens;
    if (offer.answer != SequenceGroup::Offer::Answer::kFits || rows >= best_rows) continue;
    best = static_cast<int>(group);
    best_rows = rows;
    best_offer = std::move(offer);
  }
  if (best < 0 && !lane.lacks_blocks) lane.passed_over = 0;
  lane.lacks_blocks = best < 0 && lacks_blocks;
  if (best < 0) return false;
  ++other.passed_over;
  lane.pace.Admitted(now);
  const RequestId id = next->id();
  tracked_.at(id).group = best;
  SetExpiry(id, next->deadline());
  shares_.Charge(next->request().user, static_cast<int64_t>(next->tokens().size()) -
                                           best_offer.hit.tokens + next->tokens_to_come());
  loads[best] = best_rows;
  groups_[best]->Admit(lane.queue.Admit(id), best_offer.hit, now);
  return true;
}

// Sequences that were preempted wait again, ahead of those that have not begun.
void Scheduler::Requeue(SequenceGroup& group) {
  for (auto& sequence : group.TakePreempted()) {
    tracked_.at(sequence->id()).group = -1;
    shares_.Refund(sequence->request().user, sequence->tokens_to_come());
    LaneOf(*sequence).queue.AddResumed(std::move(sequence));
  }
}

int Scheduler::queued() const {
  int queued = lanes_[0].queue.size() + lanes_[1].queue.size();
  for (const auto& [leader, waiting] : followers_) queued += static_cast<int>(waiting.size());
  return queued;
}

absl::Duration Scheduler::RetryDelay() const {
  const bool heads = lanes_[1].queue.size() > lanes_[0].queue.size();
  const absl::Duration gap = lanes_[heads ? 1 : 0].pace.Gap();
  if (gap == absl::ZeroDuration()) return kRetryUnknown;
  return std::clamp(gap * std::max(1, queued() / kRetryPart), kRetryLeast, kRetryMost);
}

absl::Status Scheduler::OnResult(int rank, const internal::v1::StepResult& result) {
  CONCLAVE_CHECK(in_epoch() && rank >= 0 && rank < options_.shape.world());
  if (result.step() != next_answer_[rank] || result.step() >= next_step_) {
    return absl::InternalError(fmt::format("rank {} answered step {}, expected {} of {} sent", rank,
                                           result.step(), next_answer_[rank], next_step_));
  }
  const absl::Time now = clock_.Now();
  std::vector<SequenceGroup::Ended> ended;
  if (options_.shape.tp_rank(rank) == 0) {
    SequenceGroup& group = *groups_[options_.shape.dp_rank(rank)];
    RETURN_IF_ERROR(group.OnResult(result, now, ended));
    Requeue(group);
  }
  for (const SequenceGroup::Ended& end : ended) Forget(end.id, end.unused_tokens);
  CountAnswer(rank, result, now);
  UpdateBusy(now);
  return absl::OkStatus();
}

// The oldest plan retires when every rank has answered it. Each rank answers in order, so the
// oldest is always complete first.
void Scheduler::CountAnswer(int rank, const internal::v1::StepResult& result, absl::Time now) {
  InFlight& plan = in_flight_[next_answer_[rank]++ - in_flight_.front().step];
  plan.longest = std::max(plan.longest, absl::Nanoseconds(static_cast<int64_t>(result.step_ns())));
  if (++plan.answers < options_.shape.world()) return;
  progress_.StepDone(now, plan.longest);
  ++counters_.steps;
  in_flight_.pop_front();
}

int Scheduler::running() const {
  int running = 0;
  for (const auto& group : groups_) running += group->running();
  return running;
}

void Scheduler::UpdateBusy(absl::Time now) { progress_.SetBusy(!tracked_.empty(), now); }

}  // namespace conclave::coordinator
