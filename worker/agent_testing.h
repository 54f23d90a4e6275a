#ifndef CONCLAVE_WORKER_AGENT_TESTING_H_
#define CONCLAVE_WORKER_AGENT_TESTING_H_

// Both neighbours of the agent, for its tests: a coordinator in this process, and a runtime that
// computes nothing.

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/mailbox.h"
#include "proto/conclave/internal/v1/worker.grpc.pb.h"
#include "worker/rank_runtime.h"

namespace conclave::worker {

// Serves one worker at a time. What the worker sends is taken with Next; heartbeats are kept apart.
class FakeCoordinator final : public internal::v1::WorkerRegistry::Service {
 public:
  // `port` 0: any that is free.
  explicit FakeCoordinator(int port = 0) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override {
    Hangup();
    server_->Shutdown(std::chrono::system_clock::now());
  }

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // The worker's next message but heartbeats. Fails the program after a minute.
  internal::v1::WorkerMessage Next() { return Await(messages_); }
  internal::v1::Heartbeat NextHeartbeat() { return Await(heartbeats_).heartbeat(); }

  // To the worker whose stream is open.
  void Send(const internal::v1::CoordinatorMessage& message) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](Stream** stream) { return *stream != nullptr; }, &stream_));
    stream_->Write(message);
  }
  void Assign(uint64_t epoch, uint32_t rank) {
    internal::v1::Assignment assignment;
    assignment.set_epoch(epoch);
    assignment.set_rank(rank);
    Assign(assignment);
  }
  void Assign(const internal::v1::Assignment& assignment) {
    internal::v1::CoordinatorMessage message;
    *message.mutable_assignment() = assignment;
    Send(message);
  }
  void Plan(uint64_t epoch, uint64_t step) {
    internal::v1::CoordinatorMessage message;
    message.mutable_step_plan()->set_epoch(epoch);
    message.mutable_step_plan()->set_step(step);
    Send(message);
  }
  void EndEpoch(uint64_t epoch) {
    internal::v1::CoordinatorMessage message;
    message.mutable_end_epoch()->set_epoch(epoch);
    Send(message);
  }
  void Refuse(const std::string& reason) {
    internal::v1::CoordinatorMessage message;
    message.mutable_refuse()->set_reason(reason);
    Send(message);
  }
  // Breaks the stream.
  void Hangup() {
    absl::MutexLock lock(&mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  grpc::Status Join(grpc::ServerContext* context,
                    grpc::ServerReaderWriter<internal::v1::CoordinatorMessage,
                                             internal::v1::WorkerMessage>* stream) override {
    Open(context, stream);
    internal::v1::WorkerMessage message;
    while (stream->Read(&message)) {
      (message.has_heartbeat() ? heartbeats_ : messages_).Post(message);
    }
    Open(nullptr, nullptr);
    return grpc::Status::OK;
  }
  grpc::Status Put(grpc::ServerContext*, const internal::v1::PutRequest* request,
                   internal::v1::PutResponse*) override {
    absl::MutexLock lock(&mutex_);
    values_[{request->epoch(), request->key()}] = request->value();
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext* context, const internal::v1::GetRequest* request,
                   internal::v1::GetResponse* response) override {
    const std::pair key{request->epoch(), request->key()};
    while (!context->IsCancelled()) {
      absl::MutexLock lock(&mutex_);
      auto present = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return values_.contains(key); };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&present), absl::Milliseconds(5))) continue;
      response->set_value(values_[key]);
      return grpc::Status::OK;
    }
    return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "nobody put it");
  }

 private:
  using Stream =
      grpc::ServerReaderWriter<internal::v1::CoordinatorMessage, internal::v1::WorkerMessage>;

  void Open(grpc::ServerContext* context, Stream* stream) {
    absl::MutexLock lock(&mutex_);
    context_ = context;
    stream_ = stream;
  }
  static internal::v1::WorkerMessage Await(base::Mailbox<internal::v1::WorkerMessage>& box) {
    auto message = box.Take(absl::Minutes(1));
    if (!message.has_value()) std::abort();
    return *std::move(message);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  base::Mailbox<internal::v1::WorkerMessage> messages_;
  base::Mailbox<internal::v1::WorkerMessage> heartbeats_;
  absl::Mutex mutex_;  // guards the following
  grpc::ServerContext* context_ = nullptr;
  Stream* stream_ = nullptr;
  std::map<std::pair<uint64_t, std::string>, std::string> values_;
};

// Does what the hooks say; without them everything succeeds at once.
class FakeRuntime final : public RankRuntime {
 public:
  // Called inside Begin and Step. Set before the agent runs.
  std::function<absl::Status(const internal::v1::Assignment&, Rendezvous&, const Progress&)>
      on_begin;
  std::function<absl::Status(const internal::v1::StepPlan&)> on_step;
  // Whether Start takes a plan, and whether the oldest one that it took has ended; none are taken
  // without it.
  std::function<bool(uint64_t step)> starts;
  std::function<bool(uint64_t step)> has_ended;
  std::vector<std::string> calls;  // of Start where it took the plan, Finish and Step: "start 0"

  absl::StatusOr<internal::v1::Ready> Begin(Generation generation,
                                            const internal::v1::Assignment& assignment,
                                            Rendezvous& rendezvous,
                                            const Progress& progress) override {
    {
      absl::MutexLock lock(&mutex_);
      generation_ = generation;
    }
    if (on_begin) {
      absl::Status status = on_begin(assignment, rendezvous, progress);
      if (!status.ok()) return status;
    }
    internal::v1::Ready ready;
    ready.set_weight_bytes(123);
    ready.set_resident_format("mxfp4");
    return ready;
  }
  absl::StatusOr<internal::v1::StepResult> Step(const internal::v1::StepPlan& plan) override {
    if (on_step) {
      absl::Status status = on_step(plan);
      if (!status.ok()) return status;
    }
    return Result("step", plan.step());
  }
  absl::StatusOr<bool> Start(const internal::v1::StepPlan& plan) override {
    if (!starts || !starts(plan.step())) return false;
    calls.push_back("start " + std::to_string(plan.step()));
    started_.push_back(plan.step());
    return true;
  }
  bool Finished() override { return has_ended(started_.front()); }
  absl::StatusOr<internal::v1::StepResult> Finish() override {
    const uint64_t step = started_.front();
    started_.pop_front();
    return Result("finish", step);
  }
  internal::v1::RankStats Stats() override {
    internal::v1::RankStats stats;
    stats.set_dispatched_copies(steps_);
    return stats;
  }
  void End(bool continues) override {
    ++ends_;
    if (continues) ++continued_;
  }
  void Abort(Generation generation) override {
    absl::MutexLock lock(&mutex_);
    aborted_ = std::max(aborted_, generation);
  }

  // For hooks: waits until the running epoch is aborted.
  absl::Status WaitForAbort() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &FakeRuntime::Aborted));
    return absl::UnavailableError("aborted");
  }
  int ends() const { return ends_; }
  int continued() const { return continued_; }  // ends, of an epoch that the next one continues

 private:
  bool Aborted() const { return aborted_ >= generation_; }
  internal::v1::StepResult Result(const std::string& call, uint64_t step) {
    calls.push_back(call + " " + std::to_string(step));
    ++steps_;
    internal::v1::StepResult result;
    result.set_step_ns(1000 + step);
    return result;
  }

  std::deque<uint64_t> started_;

  absl::Mutex mutex_;  // guards both below
  Generation generation_ = 0;
  Generation aborted_ = 0;
  int steps_ = 0;
  std::atomic<int> ends_{0};
  std::atomic<int> continued_{0};
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_AGENT_TESTING_H_
