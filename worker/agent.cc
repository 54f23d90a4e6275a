#include "worker/agent.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/logging.h"
#include "base/status_macros.h"
#include "base/tls.h"

namespace conclave::worker {
namespace {

// A heartbeat's patience with a step thread that is busy: far less than its interval.
constexpr absl::Duration kStatsPatience = absl::Milliseconds(50);
constexpr int kKeepaliveMs = 10'000;  // twice what the coordinator allows

absl::StatusOr<base::ChannelSecurity> Security(const AgentOptions& options) {
  base::ChannelSecurity security{.tls = !options.tls.empty(), .files = options.tls};
  if (options.secret_file.empty()) return security;
  ASSIGN_OR_RETURN(const std::vector<std::string> secrets, base::ReadSecrets(options.secret_file));
  security.secret = secrets.front();
  return security;
}

absl::StatusOr<std::shared_ptr<internal::v1::WorkerRegistry::StubInterface>> Dial(
    const AgentOptions& options) {
  grpc::ChannelArguments arguments;
  // Plans of long prompts are larger than gRPC's default.
  arguments.SetMaxReceiveMessageSize(-1);
  // A coordinator whose host is gone says nothing: ask, and take silence for an answer.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs / 2);
  // The agent's own back-off decides when to try again.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.min_backoff)));
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.max_backoff)));
  // A coordinator that is made anew may have another address under its name.
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
  ASSIGN_OR_RETURN(const base::ChannelSecurity security, Security(options));
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel,
                   base::Dial(options.coordinator, security, arguments));
  return internal::v1::WorkerRegistry::NewStub(channel);
}

}  // namespace

absl::Status CheckCredentials(const AgentOptions& options) {
  ASSIGN_OR_RETURN(const base::ChannelSecurity security, Security(options));
  return base::LoadTls(security.files).status();
}

WorkerAgent::WorkerAgent(AgentOptions options, RankRuntime& runtime)
    : options_(std::move(options)), steps_(runtime, options_.on_device_lost) {}

WorkerAgent::~WorkerAgent() = default;

absl::Status WorkerAgent::Run() {
  absl::Duration backoff = options_.min_backoff;
  for (;;) {
    registered_.store(false);
    const absl::Status lost = Serve();
    EndEpoch();
    if (refusal_.has_value()) return absl::FailedPreconditionError(*refusal_);
    {
      absl::MutexLock lock(&mutex_);
      if (stopped_ || leaving_) return absl::OkStatus();
    }
    if (!options_.rejoin) {
      return absl::UnavailableError(fmt::format("the stream to the coordinator at {} ended: {}",
                                                options_.coordinator, std::string(lost.message())));
    }
    const bool news = registered_.load() || !lost_before_;
    if (registered_.load()) backoff = options_.min_backoff;
    // Once, not for each attempt.
    base::Log().log(news ? spdlog::level::warn : spdlog::level::debug,
                    "event=coordinator_lost address={} retry_in={} error=\"{}\"",
                    options_.coordinator, absl::FormatDuration(backoff),
                    std::string(lost.message()));
    lost_before_ = true;
    if (!WaitBackoff(backoff)) return absl::OkStatus();
    backoff = std::min(2 * backoff, options_.max_backoff);
  }
}

absl::Status WorkerAgent::Serve() {
  // Another coordinator counts its epochs from the start.
  epoch_.store(0);
  ASSIGN_OR_RETURN(stub_, Dial(options_));
  auto stream = std::make_shared<AgentStream>(*stub_);
  {
    absl::MutexLock lock(&mutex_);
    if (stopped_) stream->Cancel();
    stream_ = stream;
  }
  stream->Send(Registration());
  bool ended = false;  // mutex_
  std::thread heartbeats([&] {
    for (bool said_leave = false; WaitForHeartbeat(*stream, ended, said_leave);) {
      SendHeartbeat(*stream);
    }
  });
  internal::v1::CoordinatorMessage message;
  while (!refusal_.has_value() && stream->Read(&message)) {
    registered_.store(true);
    handling_since_.store(absl::ToUnixNanos(base::SteadyNow()));
    Handle(stream, std::move(message));
    handling_since_.store(0);
  }
  // One that ended by itself says why, unless it is cancelled first.
  if (refusal_.has_value()) stream->Cancel();
  {
    absl::MutexLock lock(&mutex_);
    ended = true;
  }
  heartbeats.join();
  {
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
  }
  // The step thread may still hold the stream for an answer, which is then dropped.
  return stream->Finish();
}

void WorkerAgent::Handle(const std::shared_ptr<AgentStream>& stream,
                         internal::v1::CoordinatorMessage message) {
  const uint64_t epoch = epoch_.load();
  switch (message.kind_case()) {
    case internal::v1::CoordinatorMessage::kAssignment:
      if (message.assignment().epoch() <= epoch) return;
      return Assign(stream, std::move(*message.mutable_assignment()));
    case internal::v1::CoordinatorMessage::kStepPlan:
      if (!epoch_open_ || message.step_plan().epoch() != epoch) return;
      return steps_.Push(std::move(*message.mutable_step_plan()));
    case internal::v1::CoordinatorMessage::kEndEpoch:
      if (epoch_open_ && message.end_epoch().epoch() == epoch) EndEpoch();
      return;
    case internal::v1::CoordinatorMessage::kRefuse:
      refusal_ = message.refuse().reason();
      return;
    case internal::v1::CoordinatorMessage::KIND_NOT_SET:
      return;
  }
}

void WorkerAgent::Assign(const std::shared_ptr<AgentStream>& stream,
                         internal::v1::Assignment assignment) {
  if (epoch_open_) EndEpoch(assignment.continues());
  base::Log().info("event=assigned epoch={} rank={} dp={} tp={} model={}", assignment.epoch(),
                   assignment.rank(), assignment.dp(), assignment.tp(), assignment.model_dir());
  epoch_.store(assignment.epoch());
  epoch_open_ = true;
  last_rank_ = assignment.rank();
  EpochTask task;
  task.generation = ++generation_;
  task.rendezvous = std::make_shared<CoordinatorRendezvous>(stub_, assignment.epoch());
  task.assignment = std::move(assignment);
  task.send = [stream](const internal::v1::WorkerMessage& answer) { stream->Send(answer); };
  steps_.Begin(std::move(task));
}

void WorkerAgent::EndEpoch(bool continues) {
  if (!epoch_open_) return;
  epoch_open_ = false;
  if (steps_.End(options_.end_limit, continues)) {
    base::Log().info("event=epoch_ended epoch={}", epoch_.load());
    return;
  }
  base::Log().error("event=step_thread_stuck epoch={} limit={}", epoch_.load(),
                    absl::FormatDuration(options_.end_limit));
  options_.on_stuck();
  CONCLAVE_CHECK(false);
}

void WorkerAgent::SendHeartbeat(AgentStream& stream) {
  internal::v1::WorkerMessage message;
  internal::v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  heartbeat.set_epoch(epoch_.load());
  heartbeat.set_free_memory_bytes(options_.free_memory_bytes());
  *heartbeat.mutable_stats() = steps_.Stats(kStatsPatience);
  stream.Send(message);
}

internal::v1::WorkerMessage WorkerAgent::Registration() const {
  internal::v1::WorkerMessage message;
  internal::v1::Register& registration = *message.mutable_register_();
  registration = options_.registration;
  registration.set_protocol_version(internal::v1::PROTOCOL_VERSION_CURRENT);
  registration.set_free_memory_bytes(options_.free_memory_bytes());
  if (last_rank_.has_value()) registration.set_previous_rank(*last_rank_);
  return message;
}

bool WorkerAgent::WaitBackoff(absl::Duration backoff) {
  absl::MutexLock lock(&mutex_);
  return !mutex_.AwaitWithTimeout(absl::Condition(&stopped_), backoff);
}

void WorkerAgent::Leave() {
  // Nobody would let it go.
  if (!registered_.load()) return Stop();
  base::Log().info("event=leaving");
  absl::MutexLock lock(&mutex_);
  leaving_ = true;
}

// Until the next one is due; passes Leave on, once. False when the stream has ended.
bool WorkerAgent::WaitForHeartbeat(AgentStream& stream, const bool& ended, bool& said_leave) {
  {
    absl::MutexLock lock(&mutex_);
    const auto due = [&] { return ended || (leaving_ && !said_leave); };
    mutex_.AwaitWithTimeout(absl::Condition(&due), options_.heartbeat_interval);
    if (ended) return false;
    if (!leaving_ || said_leave) return true;
  }
  said_leave = true;
  internal::v1::WorkerMessage message;
  message.mutable_leave();
  stream.Send(message);
  return true;
}

void WorkerAgent::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  if (stream_ != nullptr) stream_->Cancel();
}

bool WorkerAgent::Alive(absl::Duration limit) const {
  const int64_t since = handling_since_.load();
  return since == 0 || base::SteadyNow() - absl::FromUnixNanos(since) < limit;
}

}  // namespace conclave::worker
