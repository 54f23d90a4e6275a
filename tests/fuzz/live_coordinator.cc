#include "tests/fuzz/live_coordinator.h"

#include <cstdio>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/logging.h"
#include "coordinator/cluster_testing.h"

namespace conclave::tests {
namespace {

using coordinator::FakeRank;
using internal::v1::WorkerMessage;

constexpr coordinator::WorkerId kFirstWorker = 1'000'000;  // streams of the registry count from 0

coordinator::EngineOptions MakeEngineOptions(const coordinator::ServingModel& model) {
  coordinator::EngineOptions options;
  options.max_queued = 256;
  coordinator::ClusterOptions& cluster = options.cluster;
  cluster.shape = {.dp = 1, .tp = 1};
  cluster.model_dir = model.dir;
  cluster.config = model.config;
  cluster.heads = model.heads;
  cluster.max_step_tokens = 64;
  cluster.prefill_chunk = 32;
  cluster.max_running = 8;
  cluster.allow_forced_routing = model.allow_forced_routing;
  CONCLAVE_CHECK(coordinator::PlanModel(*model.checkpoint, cluster).ok());
  return options;
}

coordinator::ServingModel LoadDemo() {
  coordinator::ServingModelOptions options;
  options.dir = "demo/tiny_gpt_oss";
  options.heads = {{"mood", "demo/tiny_gpt_oss/head_sequence"},
                   {"ner", "demo/tiny_gpt_oss/head_token"}};
  options.allow_forced_routing = true;
  auto model = coordinator::LoadServingModel(options);
  if (!model.ok()) std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
  CONCLAVE_CHECK(model.ok());
  model->config.context_length = 48;  // short sequences, more of them
  return *std::move(model);
}

}  // namespace

FakeWorker::FakeWorker(coordinator::EngineLoop& engine, const coordinator::ClusterOptions& options)
    : engine_(engine), options_(options), id_(kFirstWorker) {}

void FakeWorker::Start(const std::shared_ptr<FakeWorker>& worker) {
  worker->Join();
  std::thread([worker] { worker->Run(); }).detach();
}

void FakeWorker::Join() {
  engine_.OnWorkerJoined(id_, shared_from_this());
  engine_.OnWorkerMessage(id_, coordinator::RegisterMessage(1));
}

std::shared_ptr<absl::Notification> FakeWorker::SayBeforeNextAnswer(WorkerMessage message,
                                                                    bool current) {
  Injection injection{.message = std::move(message), .current = current};
  auto said = injection.said;
  injections_.Post(std::move(injection));
  return said;
}

void FakeWorker::Send(internal::v1::CoordinatorMessage message) {
  mailbox_.Post(std::move(message));
}

void FakeWorker::Close() { mailbox_.Post(Closed{}); }
// It is never silent, as time stands still.
void FakeWorker::Abort() { CONCLAVE_CHECK(!"the engine aborted the worker's stream"); }

void FakeWorker::Run() {
  while (auto event = mailbox_.Take(absl::InfiniteDuration())) {
    if (const auto* message = std::get_if<internal::v1::CoordinatorMessage>(&*event)) {
      Hear(*message);
      continue;
    }
    // It said Leave and was let go. A worker that joins again is another one.
    rank_.reset();
    ++id_;
    Join();
  }
}

void FakeWorker::Hear(const internal::v1::CoordinatorMessage& message) {
  CONCLAVE_CHECK(!message.has_refuse());
  if (message.has_assignment()) Load(message.assignment());
  if (message.has_end_epoch()) {
    rank_.reset();
    // What was said of its memory before may be wrong, and no group forms without memory.
    engine_.OnWorkerMessage(id_, coordinator::HeartbeatMessage(0));
  }
  if (message.has_step_plan() && rank_.has_value()) Answer(message.step_plan());
}

void FakeWorker::Load(const internal::v1::Assignment& assignment) {
  FakeRank::Shape shape;
  shape.window = options_.config.sliding_window;
  shape.vocab_size = options_.config.vocab_size;
  for (const coordinator::Head& head : options_.heads) {
    shape.head_labels.push_back(static_cast<int>(head.config.labels.size()));
  }
  shape.full_blocks = static_cast<int>(assignment.cache().full_blocks());
  shape.sliding_blocks = static_cast<int>(assignment.cache().sliding_blocks());
  shape.max_sequences = static_cast<int>(assignment.cache().max_sequences());
  shape.max_step_tokens = options_.max_step_tokens;
  rank_.emplace(std::move(shape));
  engine_.OnWorkerMessage(id_, coordinator::ReadyMessage(assignment.epoch()));
}

void FakeWorker::Answer(const internal::v1::StepPlan& plan) {
  WorkerMessage message;
  *message.mutable_step_result() = rank_->Execute(plan);
  std::shared_ptr<absl::Notification> said;
  if (auto injection = injections_.Take(absl::ZeroDuration())) {
    said = injection->said;
    Inject(*std::move(injection), plan);
  }
  engine_.OnWorkerMessage(id_, std::move(message));
  if (said != nullptr) said->Notify();
}

void FakeWorker::Inject(Injection injection, const internal::v1::StepPlan& plan) {
  WorkerMessage& message = injection.message;
  if (injection.current) {
    switch (message.kind_case()) {
      case WorkerMessage::kStepResult:
        message.mutable_step_result()->set_epoch(plan.epoch());
        message.mutable_step_result()->set_step(plan.step());
        break;
      case WorkerMessage::kHeartbeat:
        message.mutable_heartbeat()->set_epoch(plan.epoch());
        break;
      case WorkerMessage::kReady:
        message.mutable_ready()->set_epoch(plan.epoch());
        break;
      case WorkerMessage::kLoadProgress:
        message.mutable_load_progress()->set_epoch(plan.epoch());
        break;
      case WorkerMessage::kFault:
        message.mutable_fault()->set_epoch(plan.epoch());
        break;
      default:
        break;
    }
  }
  engine_.OnWorkerMessage(id_, std::move(message));
}

LiveCoordinator& LiveCoordinator::Get() {
  static LiveCoordinator& live = *new LiveCoordinator();
  return live;
}

LiveCoordinator::LiveCoordinator() : model_(LoadDemo()) {
  CONCLAVE_CHECK(base::InitLogging("fuzz", "off").ok());
  // FakeRank's expectations hold outside of a test too.
  if (testing::UnitTest::GetInstance()->current_test_info() == nullptr) {
    GTEST_FLAG_SET(break_on_failure, true);
  }
  const coordinator::EngineOptions options = MakeEngineOptions(model_);
  auto engine = coordinator::EngineLoop::Create(options, clock_);
  CONCLAVE_CHECK(engine.ok());
  engine_ = *std::move(engine);
  generation_.emplace(model_, *engine_, executor_);
  classification_.emplace(model_, *engine_, executor_);
  models_.emplace(model_, *engine_);
  cluster_.emplace(*engine_);
  registry_.emplace(*engine_, engine_->rendezvous());
  grpc::ServerBuilder builder;
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{
           &*generation_, &*classification_, &*models_, &*cluster_, &*registry_}) {
    builder.RegisterService(service);
  }
  server_ = builder.BuildAndStart();
  CONCLAVE_CHECK(server_ != nullptr);
  channel_ = server_->InProcessChannel({});
  worker_ = std::make_shared<FakeWorker>(*engine_, options.cluster);
  FakeWorker::Start(worker_);
}

void LiveCoordinator::WaitServing() {
  engine_->Snapshot();  // lets the loop go round
  if (engine_->Serving()) return;
  const absl::Time limit = absl::Now() + absl::Seconds(20) * base::TimeScale();
  while (!engine_->Serving()) {
    if (absl::Now() > limit) {
      std::fprintf(stderr, "does not serve: %s\n", engine_->Snapshot().ShortDebugString().c_str());
      CONCLAVE_CHECK(!"the group serves");
    }
    clock_.Advance(absl::Seconds(20));  // past the pause after a fault
    engine_->Snapshot();
  }
}

}  // namespace conclave::tests
