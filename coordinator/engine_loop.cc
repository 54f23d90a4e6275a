#include "coordinator/engine_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "base/logging.h"
#include "base/retry_delay.h"
#include "base/status_macros.h"
#include "coordinator/cluster_report.h"

namespace conclave::coordinator {
namespace {

// Messages handled before plans are sent again: enough to batch what arrives together (prompts of
// one GenerateBatch, answers of all ranks), few enough not to keep the workers waiting.
constexpr int kMessagesPerRound = 1024;

// Of these, messages that came during the round are taken along as far as this: prompts of one
// batch land in one step, and callers that ask again at once do not hold it up.
constexpr int kLateMessagesPerRound = 64;

// A Report's patience with the loop; then the last one is given.
constexpr absl::Duration kReportLimit = absl::Seconds(2);

// Of those refused because the engine drains: another server may be there at once.
constexpr absl::Duration kDrainRetryDelay = absl::Seconds(1);

// The loop goes round every Cluster::kTick at least; one that has not for this long is stuck.
constexpr absl::Duration kLiveLimit = absl::Seconds(10);

SchedulerOptions SchedulerOptionsOf(const EngineOptions& options) {
  const ClusterOptions& cluster = options.cluster;
  SchedulerOptions scheduler;
  scheduler.shape = cluster.shape;
  scheduler.context_length = cluster.config.context_length;
  scheduler.window = std::max(1, cluster.config.sliding_window);
  scheduler.vocab_size = cluster.config.vocab_size;
  scheduler.eos_token_ids = cluster.config.eos_token_ids;
  for (const Head& head : cluster.heads) {
    scheduler.head_labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  scheduler.max_step_tokens = cluster.max_step_tokens;
  scheduler.prefill_chunk = cluster.prefill_chunk;
  scheduler.max_running = cluster.max_running;
  scheduler.max_queued = options.max_queued;
  scheduler.pipeline_depth = options.pipeline_depth;
  scheduler.exchange = options.exchange;
  scheduler.prefix_cache = options.prefix_cache;
  return scheduler;
}

void EndUnserved(const Request& request, const absl::Status& status) {
  Outcome outcome;
  outcome.status = status;
  outcome.prompt_tokens = static_cast<int>(request.tokens.size());
  request.sink->OnEnd(outcome);
}

}  // namespace

absl::Status CheckEngineOptions(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckSchedulerOptions(SchedulerOptionsOf(options)));
  if (options.drain_limit < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(fmt::format("drain_limit is {}: it must be at least 0",
                                                  absl::FormatDuration(options.drain_limit)));
  }
  if (options.cluster.kv_cache_bytes >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("kv_cache_bytes is {}: it must be at least 0", options.cluster.kv_cache_bytes));
}

absl::StatusOr<std::unique_ptr<EngineLoop>> EngineLoop::Create(EngineOptions options,
                                                               const base::Clock& clock) {
  RETURN_IF_ERROR(CheckEngineOptions(options));
  SchedulerOptions scheduler = SchedulerOptionsOf(options);
  return std::unique_ptr<EngineLoop>(
      new EngineLoop(std::move(options), std::move(scheduler), clock));
}

EngineLoop::EngineLoop(EngineOptions options, SchedulerOptions scheduler_options,
                       const base::Clock& clock)
    : clock_(clock),
      scheduler_options_(std::move(scheduler_options)),
      cluster_(std::move(options.cluster), rendezvous_, clock),
      scheduler_(scheduler_options_, clock),
      rebalancer_(cluster_, scheduler_, clock),
      drainer_(options.drain_limit, scheduler_, calls_, clock),
      handover_(options.drain_limit, cluster_, scheduler_, clock) {
  Publish();
  {
    absl::MutexLock lock(&mutex_);
    published_.report = MakeReport();
  }
  thread_ = std::thread([this] { Run(); });
}

EngineLoop::~EngineLoop() { Stop(); }

void EngineLoop::Stop() {
  absl::MutexLock lock(&stop_mutex_);
  if (!thread_.joinable()) return;
  mailbox_.Post(StopMessage{});
  thread_.join();
}

// --- Any thread ---

absl::StatusOr<std::vector<RequestId>> EngineLoop::SubmitForks(std::vector<Request>& requests) {
  absl::Duration retry_delay;
  {
    absl::MutexLock lock(&mutex_);
    if (!published_.refusal.empty() && !requests.front().of_open_call) {
      return base::WithRetryDelay(absl::UnavailableError(published_.refusal), kDrainRetryDelay);
    }
    if (!published_.ready) {
      return absl::UnavailableError(
          fmt::format("no complete group of workers is ready: {}", published_.problem));
    }
    for (const Request& request : requests) {
      RETURN_IF_ERROR(CheckRequest(request, published_.limits));
    }
    retry_delay = published_.retry_delay;
  }
  const int count = static_cast<int>(requests.size());
  if (count > scheduler_options_.max_queued) {
    return absl::ResourceExhaustedError(
        fmt::format("{} completions are asked for at once, the queue has room for {}", count,
                    scheduler_options_.max_queued));
  }
  if (posted_.fetch_add(count) + queued_.load() + count > scheduler_options_.max_queued) {
    posted_.fetch_sub(count);
    return base::WithRetryDelay(
        absl::ResourceExhaustedError(
            fmt::format("{} requests are queued, the most there may be; retry after {:.1f} s",
                        scheduler_options_.max_queued, absl::ToDoubleSeconds(retry_delay))),
        retry_delay);
  }
  const RequestId first = next_id_.fetch_add(count);
  if (!mailbox_.Post(SubmitMessage{.first_id = first, .requests = std::move(requests)})) {
    posted_.fetch_sub(count);
    return absl::UnavailableError("the coordinator stops");
  }
  std::vector<RequestId> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

void EngineLoop::Cancel(RequestId id) { mailbox_.Post(CancelMessage{.id = id}); }

void EngineLoop::Rebalance(const v1::RebalanceRequest& request, RebalanceDone done) {
  if (mailbox_.Post(RebalanceMessage{.request = request, .done = done})) return;
  done(absl::UnavailableError("the coordinator stops"));
}

void EngineLoop::Drain(const v1::DrainRequest& request, DrainDone done) {
  if (mailbox_.Post(DrainMessage{.request = request, .done = done})) return;
  done(absl::UnavailableError("the coordinator stops"));
}

void EngineLoop::DrainForGood(DrainDone done) {
  if (mailbox_.Post(DrainMessage{.request = std::nullopt, .done = done})) return;
  done(absl::UnavailableError("the coordinator stops"));
}

EngineReport EngineLoop::Report() {
  auto reply = std::make_shared<ReportReply>();
  if (mailbox_.Post(ReportMessage{.reply = reply})) {
    absl::MutexLock lock(&reply->mutex);
    if (reply->mutex.AwaitWithTimeout(absl::Condition(&reply->done), kReportLimit)) {
      return std::move(reply->report);
    }
  }
  absl::MutexLock lock(&mutex_);
  return published_.report;
}

bool EngineLoop::Serving() {
  absl::MutexLock lock(&mutex_);
  return published_.ready && published_.refusal.empty() &&
         !published_.progress.Stalled(clock_.Now());
}

bool EngineLoop::Live() {
  absl::MutexLock lock(&mutex_);
  return clock_.Now() - published_.last_round < kLiveLimit * base::TimeScale();
}

void EngineLoop::OnWorkerJoined(WorkerId worker, std::shared_ptr<WorkerLink> link) {
  if (!mailbox_.Post(JoinedMessage{.worker = worker, .link = link})) link->Close();
}

void EngineLoop::OnWorkerMessage(WorkerId worker, internal::v1::WorkerMessage message) {
  mailbox_.Post(SaidMessage{.worker = worker, .message = std::move(message)});
}

void EngineLoop::OnWorkerGone(WorkerId worker, const std::string& why) {
  mailbox_.Post(GoneMessage{.worker = worker, .why = why});
}

// --- The loop's thread ---

void EngineLoop::Run() {
  while (!stopping_) {
    // Silence is judged only when everything that was said has been heard.
    if (Hear()) cluster_.Tick();
    FollowCluster();
    rebalancer_.Advance();
    handover_.Advance(rebalancer_.under_way());
    FollowCluster();
    scheduler_.Expire();
    drainer_.Advance(posted_.load());
    SendPlans();
    Publish();
    AnswerReports();
  }
  mailbox_.Close();
  rebalancer_.Fail(absl::UnavailableError("the coordinator stops"));
  drainer_.Fail(absl::UnavailableError("the coordinator stops"));
  scheduler_.FailAll(absl::UnavailableError("the coordinator stops"));
  cluster_.Shutdown();
  while (!mailbox_.closed()) Hear();  // ends what was submitted meanwhile
  Publish();
  AnswerReports();
}

// Waits for a message and handles those that are there. True when everything has been heard that
// was said before the last true: callers without end must not keep the clock from ticking.
bool EngineLoop::Hear() {
  std::optional<Message> message = mailbox_.Take(WaitLimit());
  if (unheard_ == 0) unheard_ = mailbox_.size() + (message.has_value() ? 1 : 0);
  bool heard = unheard_ == 0;
  for (int handled = 0; message.has_value(); message = mailbox_.Take(absl::ZeroDuration())) {
    std::visit([this](auto& kind) { Handle(kind); }, *message);
    if (unheard_ > 0 && --unheard_ == 0) heard = true;
    if (++handled >= (heard ? kLateMessagesPerRound : kMessagesPerRound)) break;
  }
  return heard;
}

absl::Duration EngineLoop::WaitLimit() const {
  if (stopping_) return absl::ZeroDuration();
  const absl::Duration deadline = scheduler_.NextDeadline() - clock_.Now();
  return std::clamp(deadline, absl::ZeroDuration(), Cluster::kTick);
}

void EngineLoop::Handle(SubmitMessage& message) {
  RequestId id = message.first_id;
  for (Request& request : message.requests) {
    if (scheduler_.in_epoch()) {
      const auto leader =
          id == message.first_id ? std::nullopt : std::optional<RequestId>(message.first_id);
      request.sink = Measured(std::move(request.sink), metrics_, clock_);
      scheduler_.Submit(id++, std::move(request), leader);
    } else {
      EndUnserved(request, absl::UnavailableError(fmt::format(
                               "the group of workers was lost: {}",
                               stopping_ ? "the coordinator stops" : cluster_.Problem())));
    }
  }
  queued_.store(scheduler_.queued());
  posted_.fetch_sub(static_cast<int>(message.requests.size()));
}

void EngineLoop::Handle(CancelMessage& message) { scheduler_.Cancel(message.id); }

void EngineLoop::Handle(JoinedMessage& message) {
  if (stopping_) return message.link->Close();
  cluster_.Open(message.worker, std::move(message.link));
}

void EngineLoop::Handle(SaidMessage& message) {
  if (message.message.has_step_result()) {
    HandleResult(message.worker, message.message.step_result());
  } else {
    cluster_.OnMessage(message.worker, message.message);
    FollowCluster();
  }
}

void EngineLoop::Handle(GoneMessage& message) {
  cluster_.Gone(message.worker, message.why);
  FollowCluster();
}

void EngineLoop::Handle(ReportMessage& message) {
  reports_asked_.push_back(std::move(message.reply));
}

// At the end of a round: what Serving says agrees with the report, and both with all that had been
// said when the report was asked for.
void EngineLoop::AnswerReports() {
  if (reports_asked_.empty()) return;
  const EngineReport report = MakeReport();
  {
    absl::MutexLock lock(&mutex_);
    published_.report = report;
  }
  for (const std::shared_ptr<ReportReply>& reply : reports_asked_) {
    absl::MutexLock lock(&reply->mutex);
    reply->report = report;
    reply->done = true;
  }
  reports_asked_.clear();
}

void EngineLoop::Handle(RebalanceMessage& message) {
  if (stopping_) return message.done(absl::UnavailableError("the coordinator stops"));
  rebalancer_.Begin(message.request, std::move(message.done));
}

void EngineLoop::Handle(DrainMessage& message) {
  if (stopping_) return message.done(absl::UnavailableError("the coordinator stops"));
  if (message.request.has_value()) {
    drainer_.Begin(*message.request, std::move(message.done));
  } else {
    drainer_.BeginForGood(std::move(message.done));
  }
}

void EngineLoop::Handle(StopMessage&) { stopping_ = true; }

void EngineLoop::HandleResult(WorkerId worker, const internal::v1::StepResult& result) {
  cluster_.Touch(worker);
  const std::optional<int> rank = cluster_.RankOf(worker, result.epoch());
  if (!rank.has_value() || !scheduler_.in_epoch()) return;
  metrics_.ObserveStep(result);
  const absl::Status accepted = scheduler_.OnResult(*rank, result);
  if (accepted.ok()) return;
  cluster_.Fault(worker, accepted);
  FollowCluster();
}

// The scheduler's epoch is the cluster's, as long as that is READY, or is about to continue it.
void EngineLoop::FollowCluster() {
  const bool ready = cluster_.state() == v1::READY;
  if (scheduler_.in_epoch() && cluster_.continues() && cluster_.epoch() == scheduled_epoch_ + 1) {
    if (!ready) return;
    scheduled_epoch_ = cluster_.epoch();
    scheduler_.ContinueEpoch(scheduled_epoch_);
  }
  if (scheduler_.in_epoch() && (!ready || cluster_.epoch() != scheduled_epoch_)) {
    scheduler_.FailAll(absl::UnavailableError(fmt::format(
        "the group of workers was lost: {}; what was sent until now is a prefix of the output",
        cluster_.last_end())));
  }
  if (ready && !scheduler_.in_epoch()) {
    scheduled_epoch_ = cluster_.epoch();
    scheduler_.BeginEpoch(scheduled_epoch_, cluster_.cache());
  }
}

void EngineLoop::SendPlans() {
  while (const WorldPlan* plan = scheduler_.NextPlan()) cluster_.Send(*plan);
  queued_.store(scheduler_.queued());
}

void EngineLoop::Publish() {
  absl::MutexLock lock(&mutex_);
  published_.ready = scheduler_.in_epoch();
  published_.refusal = drainer_.draining() ? "the service is draining: it takes no new work"
                       : handover_.refusing()
                           ? "a worker is leaving, and no other is there to take its place"
                           : "";
  published_.problem = stopping_ ? "the coordinator stops" : cluster_.Problem();
  published_.limits = Limits();
  published_.retry_delay = scheduler_.RetryDelay();
  published_.progress = scheduler_.progress();
  published_.last_round = clock_.Now();
}

EngineReport EngineLoop::MakeReport() const {
  EngineReport report;
  report.cluster = ReportCluster(cluster_, scheduler_);
  report.cluster.set_draining(drainer_.draining());
  report.metrics = metrics_;
  report.spares = cluster_.spares();
  report.plans_in_flight = scheduler_.plans_in_flight();
  return report;
}

RequestLimits EngineLoop::Limits() const {
  const internal::v1::CacheShape& cache = cluster_.cache();
  return {.context_length = scheduler_options_.context_length,
          .window = scheduler_options_.window,
          .prefill_chunk = scheduler_options_.prefill_chunk,
          .num_heads = static_cast<int>(scheduler_options_.head_labels.size()),
          .blocks = {.full = static_cast<int>(cache.full_blocks()),
                     .sliding = static_cast<int>(cache.sliding_blocks())}};
}

}  // namespace conclave::coordinator
