#include "worker/agent_step_thread.h"

#include <fmt/format.h>

#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/device_lost.h"
#include "base/logging.h"
#include "base/one_line.h"
#include "kernels/ops.h"

namespace conclave::worker {
namespace {

// Loading reports at most this often, so that a slow coordinator does not slow it down.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);

// Between two looks at whether a started step has ended, when there is no plan to start meanwhile.
constexpr absl::Duration kLook = absl::Microseconds(10);

}  // namespace

StepThread::StepThread(RankRuntime& runtime, std::function<void()> on_device_lost)
    : runtime_(runtime), on_device_lost_(std::move(on_device_lost)), thread_([this] { Run(); }) {}

StepThread::~StepThread() {
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  thread_.join();
}

void StepThread::Begin(EpochTask epoch) {
  current_generation_ = epoch.generation;
  current_rendezvous_ = epoch.rendezvous;
  Post({.kind = Task::Kind::kBegin, .begin = std::move(epoch)});
}

void StepThread::Push(internal::v1::StepPlan plan) {
  Post({.kind = Task::Kind::kPlan, .plan = std::move(plan)});
}

bool StepThread::End(absl::Duration limit, bool continues) {
  runtime_.Abort(current_generation_);
  if (current_rendezvous_ != nullptr) current_rendezvous_->Cancel();
  current_rendezvous_ = nullptr;
  absl::MutexLock lock(&mutex_);
  queue_.clear();
  stats_wanted_ = false;
  queue_.push_back({.kind = Task::Kind::kEnd, .continues = continues});
  return mutex_.AwaitWithTimeout(absl::Condition(this, &StepThread::Idle), limit);
}

internal::v1::RankStats StepThread::Stats(absl::Duration patience) {
  absl::MutexLock lock(&mutex_);
  if (!stats_wanted_ && !closed_) {
    stats_wanted_ = true;
    queue_.push_back({.kind = Task::Kind::kStats});
  }
  const auto fresh = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !stats_wanted_; };
  mutex_.AwaitWithTimeout(absl::Condition(&fresh), patience);
  return stats_;
}

void StepThread::Post(Task task) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(task));
}

void StepThread::Run() {
  for (;;) {
    while (started_.size() == kernels::kMaxStepsAhead ||
           (!started_.empty() && runtime_.Finished())) {
      FinishOldest();
    }
    std::optional<Task> task = Next();
    if (task.has_value()) {
      Execute(*std::move(task));
    } else if (started_.empty()) {
      return;
    }
  }
}

std::optional<StepThread::Task> StepThread::Next() {
  absl::MutexLock lock(&mutex_);
  const absl::Condition has_work(this, &StepThread::HasWork);
  if (started_.empty()) {
    busy_ = false;
    mutex_.Await(has_work);
  } else {
    mutex_.AwaitWithTimeout(has_work, kLook);
  }
  if (queue_.empty()) return std::nullopt;
  std::optional<Task> task = std::move(queue_.front());
  queue_.pop_front();
  busy_ = true;
  return task;
}

void StepThread::Execute(Task task) {
  switch (task.kind) {
    case Task::Kind::kBegin:
      CONCLAVE_CHECK(!epoch_.has_value());
      epoch_ = std::move(task.begin);
      RunBegin();
      break;
    case Task::Kind::kPlan:
      RunPlan(*task.plan);
      break;
    case Task::Kind::kEnd:
      RunEnd(task.continues);
      break;
    case Task::Kind::kStats:
      FinishAll();
      PublishStats();
      break;
  }
}

void StepThread::RunBegin() {
  next_step_ = 0;
  faulted_ = false;
  const uint64_t epoch = epoch_->assignment.epoch();
  absl::Time next_report = absl::InfinitePast();
  auto report = [&](int64_t loaded, int64_t total) {
    if (base::SteadyNow() < next_report && loaded < total) return;
    next_report = base::SteadyNow() + kProgressInterval;
    internal::v1::WorkerMessage message;
    internal::v1::LoadProgress& progress = *message.mutable_load_progress();
    progress.set_epoch(epoch);
    progress.set_loaded_bytes(loaded);
    progress.set_total_bytes(total);
    epoch_->send(message);
  };
  absl::StatusOr<internal::v1::Ready> ready =
      runtime_.Begin(epoch_->generation, epoch_->assignment, *epoch_->rendezvous, report);
  if (!ready.ok()) return SendFault(ready.status());
  PublishStats();
  base::Log().info(
      "event=epoch_ready epoch={} rank={} weight_bytes={} kv_bytes={} format={} "
      "warm_up_seconds={:.3f}",
      epoch, epoch_->assignment.rank(), ready->weight_bytes(), ready->kv_bytes(),
      ready->resident_format(), ready->warm_up_seconds());
  internal::v1::WorkerMessage message;
  *message.mutable_ready() = *std::move(ready);
  message.mutable_ready()->set_epoch(epoch);
  epoch_->send(message);
}

void StepThread::RunPlan(const internal::v1::StepPlan& plan) {
  if (!epoch_.has_value() || faulted_) return;
  if (plan.step() != next_step_) {
    return SendFault(absl::InternalError(
        fmt::format("got step plan {} where {} is next", plan.step(), next_step_)));
  }
  ++next_step_;
  const PlanId id = {plan.epoch(), plan.step()};
  const absl::StatusOr<bool> started = runtime_.Start(plan);
  if (!started.ok()) return SendFault(started.status());
  if (*started) {
    started_.push_back(id);
    return;
  }
  FinishAll();
  if (!faulted_) Answer(id, runtime_.Step(plan));
}

void StepThread::FinishOldest() {
  const PlanId plan = started_.front();
  started_.pop_front();
  Answer(plan, runtime_.Finish());
}

void StepThread::FinishAll() {
  while (!started_.empty()) FinishOldest();
}

void StepThread::Answer(const PlanId& plan, absl::StatusOr<internal::v1::StepResult> result) {
  if (!result.ok()) return SendFault(result.status());
  internal::v1::WorkerMessage message;
  *message.mutable_step_result() = *std::move(result);
  message.mutable_step_result()->set_epoch(plan.epoch);
  message.mutable_step_result()->set_step(plan.step);
  epoch_->send(message);
}

void StepThread::RunEnd(bool continues) {
  started_.clear();
  runtime_.End(continues);
  epoch_.reset();
  PublishStats();
}

void StepThread::SendFault(const absl::Status& status) {
  faulted_ = true;
  started_.clear();
  base::Log().warn("event=fault epoch={} rank={} error=\"{}\"", epoch_->assignment.epoch(),
                   epoch_->assignment.rank(), status.ToString());
  internal::v1::WorkerMessage message;
  internal::v1::Fault& fault = *message.mutable_fault();
  fault.set_epoch(epoch_->assignment.epoch());
  fault.set_code(static_cast<int32_t>(status.code()));
  // It may quote a file: a string that is not UTF-8 would break the stream.
  fault.set_message(base::OneLine(std::string(status.message())));
  epoch_->send(message);
  if (!base::IsDeviceLost(status)) return;
  base::Log().critical("event=device_lost error=\"{}\"", std::string(status.message()));
  on_device_lost_();
}

void StepThread::PublishStats() {
  internal::v1::RankStats stats = runtime_.Stats();
  absl::MutexLock lock(&mutex_);
  stats_ = std::move(stats);
  stats_wanted_ = false;
}

}  // namespace conclave::worker
