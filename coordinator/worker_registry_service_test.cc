#include "coordinator/worker_registry_service.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "coordinator/cluster_testing.h"
#include "coordinator/engine_loop.h"
#include "coordinator/engine_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using internal::v1::CoordinatorMessage;
using internal::v1::WorkerMessage;
using internal::v1::WorkerRegistry;
using ::testing::HasSubstr;

const absl::Duration kPatience = absl::Seconds(20) * base::TimeScale();

std::chrono::system_clock::time_point After(absl::Duration duration) {
  return absl::ToChronoTime(absl::Now() + duration);
}

// The service on a loopback port.
struct Server {
  Server(WorkerEvents& events, Rendezvous& rendezvous) : service(events, rendezvous) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service);
    server = builder.BuildAndStart();
  }
  ~Server() { server->Shutdown(After(absl::ZeroDuration())); }

  std::unique_ptr<WorkerRegistry::Stub> NewStub() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return WorkerRegistry::NewStub(grpc::CreateCustomChannel(
        "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments));
  }

  WorkerRegistryService service;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

// Keeps the links and counts what happens.
class RecordingEvents : public WorkerEvents {
 public:
  void OnWorkerJoined(WorkerId worker, std::shared_ptr<WorkerLink> link) override {
    absl::MutexLock lock(&mutex_);
    worker_ = worker;
    link_ = std::move(link);
  }
  void OnWorkerMessage(WorkerId, WorkerMessage) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(gone_, 0);
    ++messages_;
  }
  void OnWorkerGone(WorkerId worker, const std::string&) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(worker, worker_);
    EXPECT_EQ(++gone_, 1);
  }

  bool WaitFor(int messages, int gone) {
    absl::MutexLock lock(&mutex_);
    const auto seen = [=, this] { return messages_ >= messages && gone_ >= gone; };
    return mutex_.AwaitWithTimeout(absl::Condition(&seen), kPatience);
  }
  std::shared_ptr<WorkerLink> link() {
    absl::MutexLock lock(&mutex_);
    return link_;
  }

 private:
  absl::Mutex mutex_;  // guards all below
  WorkerId worker_ = 0;
  std::shared_ptr<WorkerLink> link_;
  int messages_ = 0;
  int gone_ = 0;
};

CoordinatorMessage EndEpochMessage(uint64_t epoch) {
  CoordinatorMessage message;
  message.mutable_end_epoch()->set_epoch(epoch);
  return message;
}

TEST(WorkerStream, MessagesArriveInOrderAndCloseComesAfterThem) {
  RecordingEvents events;
  Rendezvous rendezvous;
  Server server(events, rendezvous);
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Join(&context);
  ASSERT_TRUE(stream->Write(RegisterMessage(1)));
  ASSERT_TRUE(events.WaitFor(1, 0));
  for (uint64_t i = 0; i < 100; ++i) events.link()->Send(EndEpochMessage(i));
  events.link()->Close();
  events.link()->Send(EndEpochMessage(1000));
  CoordinatorMessage message;
  for (uint64_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(stream->Read(&message));
    EXPECT_EQ(message.end_epoch().epoch(), i);
  }
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(events.WaitFor(1, 1));
}

TEST(WorkerStream, AWorkerThatVanishesIsGoneAtOnce) {
  RecordingEvents events;
  Rendezvous rendezvous;
  Server server(events, rendezvous);
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Join(&context);
  ASSERT_TRUE(stream->Write(RegisterMessage(1)));
  ASSERT_TRUE(events.WaitFor(1, 0));
  context.TryCancel();
  EXPECT_TRUE(events.WaitFor(1, 1));
  events.link()->Send(EndEpochMessage(1));
  events.link()->Abort();
  events.link()->Close();
  EXPECT_FALSE(stream->Finish().ok());
}

TEST(WorkerStream, APeerThatDoesNotReadBlocksNobodyAndCanBeCut) {
  RecordingEvents events;
  Rendezvous rendezvous;
  Server server(events, rendezvous);
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Join(&context);
  ASSERT_TRUE(stream->Write(RegisterMessage(1)));
  ASSERT_TRUE(events.WaitFor(1, 0));
  CoordinatorMessage large;
  large.mutable_refuse()->set_reason(std::string(1 << 20, 'x'));
  // Far beyond what the transport takes for a peer that does not read.
  for (int i = 0; i < 64; ++i) events.link()->Send(large);
  events.link()->Abort();
  EXPECT_TRUE(events.WaitFor(1, 1));
  CoordinatorMessage message;
  while (stream->Read(&message)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(RendezvousService, AGetWaitsForItsValueItsDeadlineOrTheEndOfTheEpoch) {
  RecordingEvents events;
  Rendezvous rendezvous;
  Server server(events, rendezvous);
  rendezvous.BeginEpoch(4);
  const auto stub = server.NewStub();
  const auto get = [&](const std::string& key, absl::Duration patience, std::string* value) {
    grpc::ClientContext context;
    context.set_deadline(After(patience));
    internal::v1::GetRequest request;
    request.set_epoch(4);
    request.set_key(key);
    internal::v1::GetResponse response;
    const grpc::Status status = stub->Get(&context, request, &response);
    if (value != nullptr) *value = response.value();
    return status.error_code();
  };
  std::string value;
  grpc::StatusCode waited = grpc::StatusCode::UNKNOWN;
  grpc::StatusCode aborted = grpc::StatusCode::UNKNOWN;
  std::thread waiter([&] { waited = get("a", kPatience, &value); });
  std::thread orphan([&] { aborted = get("never", kPatience, nullptr); });

  grpc::ClientContext context;
  internal::v1::PutRequest put;
  put.set_epoch(4);
  put.set_key("a");
  put.set_value("address");
  internal::v1::PutResponse put_response;
  EXPECT_TRUE(stub->Put(&context, put, &put_response).ok());
  waiter.join();
  EXPECT_EQ(waited, grpc::StatusCode::OK);
  EXPECT_EQ(value, "address");

  EXPECT_EQ(get("never", absl::Milliseconds(20), nullptr), grpc::StatusCode::DEADLINE_EXCEEDED);
  rendezvous.EndEpoch();
  orphan.join();
  EXPECT_EQ(aborted, grpc::StatusCode::ABORTED);
  EXPECT_EQ(get("a", kPatience, nullptr), grpc::StatusCode::ABORTED);
}

// One worker process's part, on a thread: joins, loads nothing, computes with FakeRank.
class StreamWorker {
 public:
  StreamWorker(Server& server, const ClusterOptions& options)
      : options_(options), stub_(server.NewStub()), stream_(stub_->Join(&context_)) {
    stream_->Write(RegisterMessage(7));
    thread_ = std::thread([this] { Run(); });
  }
  ~StreamWorker() { Kill(); }

  // As kill -9 does to the stream.
  void Kill() {
    if (!thread_.joinable()) return;
    context_.TryCancel();
    thread_.join();
  }
  // Until the coordinator has ended the stream.
  void Join() { thread_.join(); }

 private:
  void Run() {
    CoordinatorMessage message;
    while (stream_->Read(&message)) {
      if (message.has_assignment()) Load(message.assignment());
      if (message.has_step_plan()) Answer(message.step_plan());
    }
    stream_->Finish();
  }

  void Load(const internal::v1::Assignment& assignment) {
    tp_rank_ = options_.shape.tp_rank(assignment.rank());
    const internal::v1::CacheShape& cache = assignment.cache();
    rank_ = std::make_unique<FakeRank>(
        FakeRank::Shape{.window = options_.config.sliding_window,
                        .vocab_size = options_.config.vocab_size,
                        .head_labels = {},
                        .full_blocks = static_cast<int>(cache.full_blocks()),
                        .sliding_blocks = static_cast<int>(cache.sliding_blocks()),
                        .max_sequences = static_cast<int>(cache.max_sequences()),
                        .max_step_tokens = options_.max_step_tokens});
    stream_->Write(ReadyMessage(assignment.epoch()));
  }

  void Answer(const internal::v1::StepPlan& plan) {
    WorkerMessage message;
    *message.mutable_step_result() = rank_->Execute(plan);
    if (tp_rank_ != 0) message.mutable_step_result()->clear_sampled();
    stream_->Write(message);
  }

  const ClusterOptions options_;
  const std::unique_ptr<WorkerRegistry::Stub> stub_;
  grpc::ClientContext context_;
  const std::unique_ptr<grpc::ClientReaderWriter<WorkerMessage, CoordinatorMessage>> stream_;
  int tp_rank_ = 0;
  std::unique_ptr<FakeRank> rank_;
  std::thread thread_;
};

bool WaitUntilServing(EngineLoop& engine, bool serving) {
  const absl::Time limit = absl::Now() + kPatience;
  while (engine.Serving() != serving) {
    if (absl::Now() > limit) return false;
    engine.Snapshot();
  }
  return true;
}

TEST(EngineOverStreams, ServesLosesAWorkerAndServesAgain) {
  base::FakeClock clock;  // stands still: the workers here send no heartbeats
  EngineOptions options;
  options.cluster = SmallClusterOptions({.dp = 2, .tp = 1});
  const auto engine = *EngineLoop::Create(options, clock);
  Server server(*engine, engine->rendezvous());
  auto first = std::make_unique<StreamWorker>(server, options.cluster);
  StreamWorker second(server, options.cluster);
  ASSERT_TRUE(WaitUntilServing(*engine, true));

  const auto submit = [&](int prompt, int max_tokens) {
    auto sink = std::make_shared<RecordingSink>();
    Request request;
    request.tokens.assign(prompt, 1);
    request.max_tokens = max_tokens;
    request.sampling.set_seed(3);
    request.sink = sink;
    EXPECT_TRUE(engine->Submit(std::move(request)).ok());
    return sink;
  };
  const absl::Time start = absl::Now();
  const auto whole = submit(10, 200);
  ASSERT_TRUE(whole->WaitForEnd(kPatience));
  ASSERT_TRUE(whole->outcome().status.ok()) << whole->outcome().status;
  RecordProperty("us_per_step",
                 static_cast<int>(absl::ToInt64Microseconds(absl::Now() - start) / 200));
  for (int i = 0; i < 200; ++i) ASSERT_EQ(whole->tokens()[i], FakeToken(3, 10 + i, 1000));

  const auto cut = submit(5, 240);
  ASSERT_TRUE(cut->WaitForTokens(1, kPatience));
  first->Kill();
  ASSERT_TRUE(cut->WaitForEnd(kPatience));
  // It may just have got through.
  if (!cut->outcome().status.ok()) {
    EXPECT_EQ(cut->outcome().status.code(), absl::StatusCode::kUnavailable);
  }
  for (size_t i = 0; i < cut->tokens().size(); ++i) {
    ASSERT_EQ(cut->tokens()[i], FakeToken(3, 5 + static_cast<int>(i), 1000));
  }
  ASSERT_TRUE(WaitUntilServing(*engine, false));
  StreamWorker third(server, options.cluster);
  ASSERT_TRUE(WaitUntilServing(*engine, true));
  const auto again = submit(5, 5);
  ASSERT_TRUE(again->WaitForEnd(kPatience));
  EXPECT_TRUE(again->outcome().status.ok());
  engine->Stop();
  second.Join();
  third.Join();
}

TEST(EngineOverStreams, AWorkerThatIsNotWantedIsToldWhyAndItsStreamEnds) {
  base::FakeClock clock;
  EngineOptions options;
  options.cluster = SmallClusterOptions({.dp = 1, .tp = 1});
  const auto engine = *EngineLoop::Create(options, clock);
  Server server(*engine, engine->rendezvous());
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  const auto stream = stub->Join(&context);
  WorkerMessage message = RegisterMessage(1);
  message.mutable_register_()->set_protocol_version(77);
  ASSERT_TRUE(stream->Write(message));
  CoordinatorMessage answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_THAT(answer.refuse().reason(), HasSubstr("protocol version 77"));
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace conclave::coordinator
