#include "coordinator/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/status_macros.h"

namespace conclave::coordinator {

Scheduler::Scheduler(const SchedulerOptions& options, const base::Clock& clock)
    : options_(options),
      policy_(*ExchangePolicy::Create(options.exchange, options.shape, options.max_step_tokens)),
      clock_(clock) {
  CONCLAVE_CHECK(CheckSchedulerOptions(options).ok());
}

void Scheduler::BeginEpoch(uint64_t epoch, const internal::v1::CacheShape& cache) {
  CONCLAVE_CHECK(tracked_.empty() && !epoch_.has_value());
  StartEpoch(epoch);
  groups_.clear();
  for (int group = 0; group < options_.shape.dp; ++group) {
    groups_.push_back(std::make_unique<SequenceGroup>(options_, cache, counters_));
  }
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

void Scheduler::FailAll(const absl::Status& status) {
  const absl::Time now = clock_.Now();
  for (const auto& sequence : queue_) sequence->End(status, FinishReason::kStop, now, counters_);
  for (const auto& group : groups_) group->FailAll(status, now);
  queue_.clear();
  groups_.clear();
  tracked_.clear();
  deadlines_.clear();
  in_flight_.clear();
  epoch_.reset();
  held_ = false;
  UpdateBusy(now);
}

void Scheduler::Submit(RequestId id, Request request) {
  CONCLAVE_CHECK(in_epoch());
  const absl::Time now = clock_.Now();
  auto sequence = std::make_unique<Sequence>(id, std::move(request), options_.context_length, now);
  tracked_[id] = {.sequence = sequence.get(), .group = -1, .deadline = sequence->deadline()};
  if (sequence->deadline() != absl::InfiniteFuture()) {
    deadlines_.emplace(sequence->deadline(), id);
  }
  queue_.push_back(std::move(sequence));
  UpdateBusy(now);
}

void Scheduler::Cancel(RequestId id) { End(id, absl::OkStatus(), FinishReason::kCancelled); }

void Scheduler::Expire() {
  const absl::Time now = clock_.Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    End(deadlines_.begin()->second, absl::DeadlineExceededError("the request's deadline passed"),
        FinishReason::kStop);
  }
}

absl::Time Scheduler::NextDeadline() const {
  return deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
}

void Scheduler::End(RequestId id, const absl::Status& status, FinishReason reason) {
  const auto entry = tracked_.find(id);
  if (entry == tracked_.end()) return;
  const Tracked tracked = entry->second;
  const absl::Time now = clock_.Now();
  Forget(id);
  if (tracked.group >= 0) {
    groups_[tracked.group]->End(*tracked.sequence, status, reason, now);
  } else {
    tracked.sequence->End(status, reason, now, counters_);
    queue_.erase(std::find_if(queue_.begin(), queue_.end(), [&](const auto& sequence) {
      return sequence.get() == tracked.sequence;
    }));
  }
  UpdateBusy(now);
}

void Scheduler::Forget(RequestId id) {
  const auto entry = tracked_.find(id);
  CONCLAVE_CHECK(entry != tracked_.end());
  deadlines_.erase({entry->second.deadline, id});
  tracked_.erase(entry);
}

std::optional<WorldPlan> Scheduler::NextPlan() {
  if (!in_epoch() || held_ || plans_in_flight() >= options_.pipeline_depth) return std::nullopt;
  AdmitQueued(clock_.Now());
  if (std::none_of(groups_.begin(), groups_.end(),
                   [](const auto& group) { return group->Runnable(); })) {
    return std::nullopt;
  }
  WorldPlan plan{.step = next_step_++,
                 .groups = std::vector<internal::v1::StepPlan>(groups_.size())};
  std::vector<GroupRows> rows;
  for (size_t group = 0; group < groups_.size(); ++group) {
    rows.push_back(groups_[group]->AddTo(plan.groups[group]));
  }
  const ExchangeDecision decision = policy_.Decide(rows);
  for (internal::v1::StepPlan& group : plan.groups) {
    group.set_epoch(*epoch_);
    group.set_step(plan.step);
    group.set_exchange_mode(decision.mode);
    group.set_bucket(decision.bucket);
  }
  in_flight_.push_back({.step = plan.step, .answers = 0, .longest = absl::ZeroDuration()});
  counters_.max_plans_in_flight = std::max(counters_.max_plans_in_flight, plans_in_flight());
  return plan;
}

// Strictly in order: a long request at the front is never overtaken for ever by short ones.
void Scheduler::AdmitQueued(absl::Time now) {
  while (!queue_.empty() && AdmitToLeastLoaded(queue_.front(), now)) queue_.pop_front();
}

bool Scheduler::AdmitToLeastLoaded(std::unique_ptr<Sequence>& sequence, absl::Time now) {
  std::vector<std::pair<int64_t, int>> by_load;
  for (size_t group = 0; group < groups_.size(); ++group) {
    by_load.emplace_back(groups_[group]->Load(), static_cast<int>(group));
  }
  std::sort(by_load.begin(), by_load.end());
  const RequestId id = sequence->id();
  for (const auto& [load, group] : by_load) {
    if (!groups_[group]->Admit(sequence, now)) continue;
    tracked_[id].group = group;
    return true;
  }
  return false;
}

absl::Status Scheduler::OnResult(int rank, const internal::v1::StepResult& result) {
  CONCLAVE_CHECK(in_epoch() && rank >= 0 && rank < options_.shape.world());
  if (result.step() != next_answer_[rank] || result.step() >= next_step_) {
    return absl::InternalError(fmt::format("rank {} answered step {}, expected {} of {} sent", rank,
                                           result.step(), next_answer_[rank], next_step_));
  }
  const absl::Time now = clock_.Now();
  std::vector<RequestId> ended;
  if (options_.shape.tp_rank(rank) == 0) {
    RETURN_IF_ERROR(groups_[options_.shape.dp_rank(rank)]->OnResult(result, now, ended));
  }
  for (RequestId id : ended) Forget(id);
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
