#include "coordinator/engine_loop.h"

#include <atomic>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/retry_delay.h"
#include "coordinator/cluster_testing.h"
#include "coordinator/engine_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::HasSubstr;

const absl::Duration kPatience = absl::Seconds(20) * base::TimeScale();

// A worker without a wire: loads at once, and answers plans at once or when it is told to.
class FakeWorker : public WorkerLink {
 public:
  FakeWorker(WorkerId id, EngineLoop& engine, const ClusterOptions& options)
      : id_(id), engine_(engine), options_(options) {}

  void Send(internal::v1::CoordinatorMessage message) override {
    absl::MutexLock lock(&mutex_);
    if (message.has_assignment()) {
      rank_ = message.assignment().rank();
      epoch_ = message.assignment().epoch();
      if (message.assignment().continues()) {
        executor_->Continue();
      } else {
        Load(message.assignment().cache());
      }
      assignments_.push_back(message.assignment());
      if (!loading_) engine_.OnWorkerMessage(id_, ReadyMessage(epoch_));
    } else if (message.has_step_plan()) {
      plans_.push_back(std::move(*message.mutable_step_plan()));
      while (!holding_ && !plans_.empty()) AnswerOldest();
    }
  }
  void Close() override {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  void Abort() override { Close(); }

  // From now on plans wait for Release.
  void Hold() {
    absl::MutexLock lock(&mutex_);
    holding_ = true;
  }
  void Release() {
    absl::MutexLock lock(&mutex_);
    holding_ = false;
    while (!plans_.empty()) AnswerOldest();
  }
  // Waits for a plan that is held.
  bool WaitForPlan() {
    absl::MutexLock lock(&mutex_);
    const auto there = [this] { return !plans_.empty(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }
  // The next assignments are not loaded before LoadNow.
  void HoldLoading() {
    absl::MutexLock lock(&mutex_);
    loading_ = true;
  }
  void LoadNow() {
    absl::MutexLock lock(&mutex_);
    loading_ = false;
    engine_.OnWorkerMessage(id_, ReadyMessage(epoch_));
  }
  std::vector<internal::v1::Assignment> assignments() {
    absl::MutexLock lock(&mutex_);
    return assignments_;
  }
  bool closed() {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }
  WorkerId id() const { return id_; }

 private:
  void Load(const internal::v1::CacheShape& cache) {
    plans_.clear();
    executor_ = std::make_unique<FakeRank>(
        FakeRank::Shape{.window = options_.config.sliding_window,
                        .vocab_size = options_.config.vocab_size,
                        .head_labels = {},
                        .full_blocks = static_cast<int>(cache.full_blocks()),
                        .sliding_blocks = static_cast<int>(cache.sliding_blocks()),
                        .max_sequences = static_cast<int>(cache.max_sequences()),
                        .max_step_tokens = options_.max_step_tokens});
  }

  void AnswerOldest() {
    internal::v1::WorkerMessage message;
    *message.mutable_step_result() = executor_->Execute(plans_.front());
    plans_.pop_front();
    if (options_.shape.tp_rank(rank_) != 0) message.mutable_step_result()->clear_sampled();
    engine_.OnWorkerMessage(id_, std::move(message));
  }

  const WorkerId id_;
  EngineLoop& engine_;
  const ClusterOptions options_;
  absl::Mutex mutex_;  // guards all below
  bool holding_ = false;
  bool loading_ = false;
  std::vector<internal::v1::Assignment> assignments_;
  bool closed_ = false;
  int rank_ = 0;
  uint64_t epoch_ = 0;
  std::unique_ptr<FakeRank> executor_;
  std::deque<internal::v1::StepPlan> plans_;
};

EngineOptions SmallEngineOptions(const model::ParallelShape& shape) {
  EngineOptions options;
  options.cluster = SmallClusterOptions(shape);
  return options;
}

class EngineLoopTest : public ::testing::Test {
 protected:
  void Start(EngineOptions options) {
    options_ = std::move(options);
    auto engine = EngineLoop::Create(options_, clock_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void Start(const model::ParallelShape& shape) { Start(SmallEngineOptions(shape)); }

  void TearDown() override {
    if (engine_ != nullptr) engine_->Stop();
  }

  FakeWorker& Join() {
    workers_.push_back(std::make_shared<FakeWorker>(++last_worker_, *engine_, options_.cluster));
    engine_->OnWorkerJoined(last_worker_, workers_.back());
    engine_->OnWorkerMessage(last_worker_, RegisterMessage(static_cast<int64_t>(last_worker_)));
    return *workers_.back();
  }

  void JoinAll() {
    while (static_cast<int>(workers_.size()) < options_.cluster.shape.world()) Join();
    ASSERT_TRUE(WaitUntil([this] { return engine_->Serving(); }));
  }

  // Each look at the condition goes through the engine's thread: no time is waited for.
  bool WaitUntil(const std::function<bool()>& condition) {
    const absl::Time limit = absl::Now() + kPatience;
    while (!condition()) {
      if (absl::Now() > limit) return false;
      engine_->Snapshot();
    }
    return true;
  }

  std::shared_ptr<RecordingSink> sink() { return std::make_shared<RecordingSink>(); }

  static Request MakeRequest(std::shared_ptr<RecordingSink> sink, int prompt, int max_tokens,
                             uint64_t seed = 1) {
    Request request;
    request.tokens.assign(prompt, 5);
    request.max_tokens = max_tokens;
    request.sampling.set_seed(seed);
    request.sink = std::move(sink);
    return request;
  }

  // What the engine answered, once it has.
  template <typename Response>
  struct Reply {
    absl::Mutex mutex;  // guards what follows
    int answers = 0;
    absl::StatusOr<Response> result;
  };
  template <typename Response>
  static std::function<void(absl::StatusOr<Response>)> Into(
      std::shared_ptr<Reply<Response>> reply) {
    return [reply](absl::StatusOr<Response> result) {
      absl::MutexLock lock(&reply->mutex);
      reply->result = std::move(result);
      ++reply->answers;
    };
  }
  std::shared_ptr<Reply<v1::RebalanceResponse>> AskRebalance(const v1::RebalanceRequest& request) {
    auto reply = std::make_shared<Reply<v1::RebalanceResponse>>();
    engine_->Rebalance(request, Into(reply));
    return reply;
  }
  std::shared_ptr<Reply<v1::DrainResponse>> AskDrain(std::optional<double> seconds = std::nullopt) {
    v1::DrainRequest request;
    if (seconds.has_value()) request.set_limit_seconds(*seconds);
    auto reply = std::make_shared<Reply<v1::DrainResponse>>();
    engine_->Drain(request, Into(reply));
    return reply;
  }
  absl::StatusOr<v1::DrainResponse> Resume() {
    v1::DrainRequest request;
    request.set_resume(true);
    auto reply = std::make_shared<Reply<v1::DrainResponse>>();
    engine_->Drain(request, Into(reply));
    return Answer(*reply);
  }
  template <typename Response>
  static absl::StatusOr<Response> Answer(Reply<Response>& reply) {
    absl::MutexLock lock(&reply.mutex);
    const auto there = [&] { return reply.answers > 0; };
    reply.mutex.AwaitWithTimeout(absl::Condition(&there), kPatience);
    EXPECT_EQ(reply.answers, 1);
    return reply.result;
  }
  absl::StatusOr<v1::RebalanceResponse> Rebalance(uint32_t replicas = 0, bool dry_run = false) {
    v1::RebalanceRequest request;
    request.set_replicas(replicas);
    request.set_dry_run(dry_run);
    return Answer(*AskRebalance(request));
  }
  // As worker `worker` would tell of its experts, by layer.
  void ReportLoad(size_t worker, uint64_t epoch, const std::vector<uint64_t>& load) {
    internal::v1::WorkerMessage heartbeat = HeartbeatMessage(epoch);
    heartbeat.mutable_heartbeat()->mutable_stats()->mutable_expert_load()->Add(load.begin(),
                                                                               load.end());
    engine_->OnWorkerMessage(workers_[worker]->id(), heartbeat);
  }

  base::FakeClock clock_;
  EngineOptions options_;
  std::unique_ptr<EngineLoop> engine_;
  std::vector<std::shared_ptr<FakeWorker>> workers_;
  WorkerId last_worker_ = 0;
};

TEST_F(EngineLoopTest, ServesARequestThroughEveryRank) {
  Start({.dp = 2, .tp = 2});
  JoinAll();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 30, 9)).ok());
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_TRUE(result->outcome().status.ok()) << result->outcome().status;
  ASSERT_EQ(result->tokens().size(), 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(result->tokens()[i], FakeToken(9, 20 + i, 1000));
  const v1::GetClusterResponse report = engine_->Snapshot();
  EXPECT_EQ(report.state(), v1::READY);
  EXPECT_EQ(report.counters().tokens_computed(), 49u);
  EXPECT_EQ(report.counters().max_plans_in_flight(), 2u);
  EXPECT_EQ(report.counters().requests_finished(), 1u);
  EXPECT_EQ(report.counters().full_blocks().used(), 0u);
  EXPECT_EQ(report.ranks_size(), 4);
}

TEST_F(EngineLoopTest, RefusesAtOnceWhileNoCompleteGroupIsThere) {
  Start({.dp = 2, .tp = 1});
  Join();
  ASSERT_TRUE(WaitUntil([&] {
    return engine_->Submit(MakeRequest(sink(), 5, 5)).status().ToString().find("1 of 2 workers") !=
           std::string::npos;
  }));
  const absl::Status status = engine_->Submit(MakeRequest(sink(), 5, 5)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->Serving());
  EXPECT_TRUE(engine_->Live());
}

TEST_F(EngineLoopTest, AFullQueueIsResourceExhaustedWithARetryDelay) {
  EngineOptions options = SmallEngineOptions({.dp = 1, .tp = 1});
  options.cluster.max_running = 1;
  options.max_queued = 2;
  Start(options);
  JoinAll();
  workers_[0]->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  const auto submit = [&] {
    sinks.push_back(sink());
    return engine_->Submit(MakeRequest(sinks.back(), 5, 3)).status();
  };
  ASSERT_TRUE(submit().ok());
  ASSERT_TRUE(WaitUntil([&] {
    const auto counters = engine_->Snapshot().counters();
    return counters.running() == 1 && counters.queued() == 0;
  }));
  // The count of those that wait is taken over when the engine's round ends.
  ASSERT_TRUE(WaitUntil([&] { return submit().ok(); }));
  ASSERT_TRUE(submit().ok());
  const absl::Status refused = submit();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.ToString(), HasSubstr("retry after"));
  EXPECT_FALSE(sinks.back()->ended());
  workers_[0]->Release();
  EXPECT_TRUE(sinks.front()->WaitForEnd(kPatience));
  ASSERT_TRUE(WaitUntil([&] { return submit().ok(); }));
  EXPECT_TRUE(sinks.back()->WaitForEnd(kPatience));
}

TEST_F(EngineLoopTest, ARequestThatCanNeverFitIsRefusedWithTheNumbers) {
  EngineOptions options = SmallEngineOptions({.dp = 1, .tp = 1});
  options.cluster.kv_cache_bytes = 64 * 1024;  // 8 blocks of 8 KiB, 3 of them sliding
  Start(options);
  JoinAll();
  const absl::Status status = engine_->Submit(MakeRequest(sink(), 200, 50)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.ToString(), HasSubstr("needs 16 full"));
  const auto fits = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(fits, 40, 20)).ok());
  EXPECT_TRUE(fits->WaitForEnd(kPatience));
}

TEST_F(EngineLoopTest, ALostWorkerEndsEveryStreamAndTheGroupComesBack) {
  EngineOptions options = SmallEngineOptions({.dp = 2, .tp = 1});
  options.cluster.max_running = 1;
  Start(options);
  JoinAll();
  for (const auto& worker : workers_) worker->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(sink());
    ASSERT_TRUE(engine_->Submit(MakeRequest(sinks.back(), 5, 50)).ok());
  }
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->OnWorkerGone(workers_[1]->id(), "its stream ended");
  for (const auto& one : sinks) {
    ASSERT_TRUE(one->WaitForEnd(kPatience));
    EXPECT_EQ(one->outcome().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(one->outcome().status.ToString(), HasSubstr("rank 1"));
  }
  EXPECT_EQ(engine_->Snapshot().state(), v1::RECOVERING);
  ASSERT_TRUE(WaitUntil([&] { return !engine_->Serving(); }));
  // Answers of the old epoch that are still on their way change nothing.
  workers_[0]->Release();
  Join();
  ASSERT_TRUE(WaitUntil([&] { return engine_->Serving(); }));
  const auto after = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(after, 5, 5)).ok());
  ASSERT_TRUE(after->WaitForEnd(kPatience));
  EXPECT_TRUE(after->outcome().status.ok());
  EXPECT_EQ(engine_->Snapshot().epoch(), 2u);
}

TEST_F(EngineLoopTest, AWrongAnswerEndsTheEpochNotTheProcess) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  workers_[0]->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 5, 50)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  internal::v1::WorkerMessage wrong;
  wrong.mutable_step_result()->set_epoch(1);
  wrong.mutable_step_result()->set_step(17);
  engine_->OnWorkerMessage(workers_[0]->id(), wrong);
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_EQ(result->outcome().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(result->outcome().status.ToString(), HasSubstr("answered step 17"));
}

TEST_F(EngineLoopTest, ReadyMeansProgress) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  clock_.Advance(absl::Hours(1));
  EXPECT_TRUE(engine_->Serving());
  workers_[0]->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 5, 5)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  // The round that sent the plan has been published once the next one is answered.
  engine_->Snapshot();
  engine_->Snapshot();
  EXPECT_TRUE(engine_->Serving());
  clock_.Advance(absl::Seconds(11) * base::TimeScale());
  EXPECT_FALSE(engine_->Serving());
  EXPECT_TRUE(WaitUntil([&] { return engine_->Live(); }));
  workers_[0]->Release();
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_TRUE(WaitUntil([&] { return engine_->Serving(); }));
}

TEST_F(EngineLoopTest, CancelledAndExpiredRequestsEnd) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  workers_[0]->Hold();
  const auto cancelled = sink();
  const auto expired = sink();
  const auto id = engine_->Submit(MakeRequest(cancelled, 5, 50));
  ASSERT_TRUE(id.ok());
  Request request = MakeRequest(expired, 5, 50);
  request.deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_TRUE(engine_->Submit(std::move(request)).ok());
  engine_->Cancel(*id);
  ASSERT_TRUE(cancelled->WaitForEnd(kPatience));
  EXPECT_EQ(cancelled->outcome().reason, FinishReason::kCancelled);
  EXPECT_FALSE(expired->ended());
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(expired->WaitForEnd(kPatience));
  EXPECT_EQ(expired->outcome().status.code(), absl::StatusCode::kDeadlineExceeded);
  workers_[0]->Release();
  EXPECT_TRUE(WaitUntil([&] { return engine_->Snapshot().counters().full_blocks().used() == 0; }));
}

// Two layers of four experts on two ranks: rank 0 has experts 0 and 1, and all the load.
TEST_F(EngineLoopTest, RebalanceMovesHotExpertsAndStreamsGoOn) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  for (const auto& worker : workers_) worker->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 30, 9)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  ReportLoad(0, 1, {90, 110, 100, 100});
  ReportLoad(1, 1, {0, 0, 0, 0});
  for (const auto& worker : workers_) worker->HoldLoading();
  const auto reply = AskRebalance({});
  engine_->Snapshot();
  EXPECT_EQ(workers_[0]->assignments().size(), 1u) << "plans are still unanswered";
  EXPECT_EQ(Rebalance().status().code(), absl::StatusCode::kFailedPrecondition) << "one at a time";
  for (const auto& worker : workers_) worker->Release();
  ASSERT_TRUE(WaitUntil([&] { return workers_[1]->assignments().size() == 2; }));
  EXPECT_EQ(engine_->Snapshot().state(), v1::LOADING);
  // Taken while experts move; computed afterwards.
  const auto late = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(late, 5, 5, 4)).ok());
  for (const auto& worker : workers_) worker->LoadNow();
  const auto response = Answer(*reply);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->epoch(), 2u);
  ASSERT_EQ(response->layers_size(), 2);
  EXPECT_DOUBLE_EQ(response->layers(0).imbalance_before(), 2);
  EXPECT_DOUBLE_EQ(response->layers(0).imbalance_after(), 1.1);
  EXPECT_DOUBLE_EQ(response->layers(1).imbalance_after(), 1);
  ASSERT_EQ(response->ranks_size(), 2);
  EXPECT_EQ(response->ranks(0).held(), 4u);
  EXPECT_EQ(response->ranks(0).gained(), 2u);

  const internal::v1::Assignment after = workers_[0]->assignments().back();
  EXPECT_TRUE(after.continues());
  EXPECT_EQ(after.epoch(), 2u);
  for (const auto& layer : after.placement().layers()) {
    EXPECT_NE(layer.experts(0).ranks(0), layer.experts(1).ranks(0));
  }
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_TRUE(result->outcome().status.ok()) << result->outcome().status;
  ASSERT_EQ(result->tokens().size(), 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(result->tokens()[i], FakeToken(9, 20 + i, 1000));
  ASSERT_TRUE(late->WaitForEnd(kPatience));
  EXPECT_TRUE(late->outcome().status.ok());
  EXPECT_EQ(engine_->Snapshot().counters().requests_failed(), 0u);
}

TEST_F(EngineLoopTest, RebalanceSaysWhyItCannotBeDone) {
  Start({.dp = 2, .tp = 1});
  EXPECT_EQ(Rebalance().status().code(), absl::StatusCode::kFailedPrecondition);
  JoinAll();
  const absl::Status idle = Rebalance().status();
  EXPECT_EQ(idle.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(idle.ToString(), HasSubstr("no expert load has been observed in epoch 1"));
  const absl::Status many = Rebalance(5).status();
  EXPECT_EQ(many.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(many.ToString(), HasSubstr("replicas is 5"));

  // A dry run, and one that would gain nothing, leave the epoch alone.
  ReportLoad(0, 1, {100, 100, 100, 100});
  ReportLoad(1, 1, {0, 0, 0, 0});
  const auto dry = Rebalance(1, true);
  ASSERT_TRUE(dry.ok()) << dry.status();
  EXPECT_EQ(dry->epoch(), 1u);
  EXPECT_GT(dry->ranks(0).loaded_bytes() + dry->ranks(1).loaded_bytes(), 0u);
  ReportLoad(1, 1, {100, 100, 100, 100});
  const auto even = Rebalance();
  ASSERT_TRUE(even.ok()) << even.status();
  EXPECT_EQ(even->epoch(), 1u);
  EXPECT_EQ(even->ranks(0).gained(), 0u);
  EXPECT_EQ(workers_[0]->assignments().size(), 1u);
}

TEST_F(EngineLoopTest, AFailedRebalanceEndsStreamsAndLeavesTheOldPlacement) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  const internal::v1::Placement before = workers_[0]->assignments().back().placement();
  ReportLoad(0, 1, {100, 100, 100, 100});
  for (const auto& worker : workers_) worker->HoldLoading();
  const auto reply = AskRebalance({});
  ASSERT_TRUE(WaitUntil([&] { return workers_[1]->assignments().size() == 2; }));
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 5, 5)).ok());
  engine_->OnWorkerMessage(workers_[1]->id(), FaultMessage(2, "no memory for expert 3"));
  const absl::Status failed = Answer(*reply).status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.ToString(), HasSubstr("no memory for expert 3"));
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_EQ(result->outcome().status.code(), absl::StatusCode::kUnavailable);
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(WaitUntil([&] { return workers_[0]->assignments().size() == 3; }));
  const internal::v1::Assignment next = workers_[0]->assignments().back();
  EXPECT_FALSE(next.continues());
  EXPECT_EQ(next.placement().SerializeAsString(), before.SerializeAsString());
}

TEST_F(EngineLoopTest, StopAnswersARebalanceThatIsUnderWay) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  ReportLoad(0, 1, {100, 100, 100, 100});
  for (const auto& worker : workers_) worker->HoldLoading();
  const auto reply = AskRebalance({});
  engine_->Stop();
  EXPECT_EQ(Answer(*reply).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineLoopTest, ADrainRefusesNewWorkAndWaitsForWhatIsUnderWay) {
  EngineOptions options = SmallEngineOptions({.dp = 1, .tp = 1});
  options.cluster.max_running = 1;
  Start(options);
  JoinAll();
  workers_[0]->Hold();
  const auto running = sink();
  const auto queued = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(running, 20, 30, 9)).ok());
  ASSERT_TRUE(engine_->Submit(MakeRequest(queued, 20, 10, 3)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->calls().Admit();  // their call
  const auto reply = AskDrain();
  ASSERT_TRUE(WaitUntil([&] { return !engine_->Serving(); }));
  EXPECT_TRUE(engine_->Snapshot().draining());
  EXPECT_TRUE(engine_->Live());
  const absl::Status refused = engine_->Submit(MakeRequest(sink(), 5, 5)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(base::RetryDelay(refused), absl::Seconds(1));
  // What belongs to a call that is under way is taken.
  const auto rest = sink();
  Request part = MakeRequest(rest, 5, 5);
  part.of_open_call = true;
  EXPECT_TRUE(engine_->Submit(std::move(part)).ok());
  workers_[0]->Release();
  for (const auto& one : {running, queued, rest}) {
    ASSERT_TRUE(one->WaitForEnd(kPatience));
    EXPECT_TRUE(one->outcome().status.ok()) << one->outcome().status;
  }
  EXPECT_EQ(running->tokens().size(), 30u);
  for (int i = 0; i < 200; ++i) engine_->Snapshot();  // more than one round takes along
  {
    absl::MutexLock lock(&reply->mutex);
    EXPECT_EQ(reply->answers, 0) << "the call has not ended";
  }
  engine_->calls().Leave();
  const auto drained = Answer(*reply);
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_EQ(drained->calls(), 1u);
  EXPECT_EQ(drained->cut(), 0u);
  EXPECT_TRUE(drained->draining());

  ASSERT_TRUE(Resume().ok());
  ASSERT_TRUE(WaitUntil([&] { return engine_->Serving(); }));
  const auto after = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(after, 5, 5)).ok());
  ASSERT_TRUE(after->WaitForEnd(kPatience));
  EXPECT_TRUE(after->outcome().status.ok());
}

TEST_F(EngineLoopTest, TheLimitOfADrainEndsEveryStreamOnce) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  workers_[0]->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 12; ++i) {  // more than run at once
    sinks.push_back(sink());
    ASSERT_TRUE(engine_->Submit(MakeRequest(sinks.back(), 20, 30)).ok());
  }
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  const auto first = AskDrain(60);
  const auto sooner = AskDrain(5);
  ASSERT_TRUE(WaitUntil([&] { return !engine_->Serving(); }));
  EXPECT_FALSE(sinks[0]->ended());
  clock_.Advance(absl::Seconds(6));
  for (const auto& one : sinks) {
    ASSERT_TRUE(one->WaitForEnd(kPatience));
    EXPECT_EQ(one->outcome().status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(Answer(*first).ok());
  EXPECT_TRUE(Answer(*sooner).ok());
  // The epoch has gone on: nothing is left of them, and the next one is served.
  workers_[0]->Release();
  ASSERT_TRUE(Resume().ok());
  ASSERT_TRUE(WaitUntil([&] { return engine_->Serving(); }));
  const auto after = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(after, 5, 5)).ok());
  ASSERT_TRUE(after->WaitForEnd(kPatience));
  EXPECT_TRUE(after->outcome().status.ok());
  EXPECT_EQ(engine_->Snapshot().epoch(), 1u);
}

TEST_F(EngineLoopTest, ADrainSaysWhatItCannotDo) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  EXPECT_THAT(Answer(*AskDrain(-1)).status().ToString(), HasSubstr("limit_seconds is -1"));
  EXPECT_THAT(Answer(*AskDrain(std::nan(""))).status().ToString(), HasSubstr("limit_seconds"));
  EXPECT_TRUE(Resume().ok()) << "there is nothing to undo";
  EXPECT_TRUE(engine_->Serving());
  const auto id = engine_->Submit(MakeRequest(sink(), 5, 100));
  workers_[0]->Hold();
  engine_->calls().Admit();
  const auto waits = AskDrain();
  ASSERT_TRUE(Resume().ok());
  EXPECT_EQ(Answer(*waits).status().code(), absl::StatusCode::kAborted);
  engine_->calls().Leave();
  auto stopped = std::make_shared<Reply<v1::DrainResponse>>();
  engine_->DrainForGood(Into(stopped));
  EXPECT_EQ(Resume().status().code(), absl::StatusCode::kFailedPrecondition);
  engine_->Stop();
  Answer(*stopped).IgnoreError();
  EXPECT_EQ(Answer(*AskDrain()).status().code(), absl::StatusCode::kUnavailable);
}

// With a spare: streams pause, and go on in another epoch as if nothing had been.
TEST_F(EngineLoopTest, AWorkerThatLeavesIsReplacedAndStreamsGoOn) {
  EngineOptions options = SmallEngineOptions({.dp = 2, .tp = 1});
  options.cluster.max_running = 4;
  Start(options);
  JoinAll();
  FakeWorker& spare = Join();
  for (const auto& worker : workers_) worker->Hold();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint64_t seed = 0; seed < 12; ++seed) {  // more than run at once
    sinks.push_back(sink());
    ASSERT_TRUE(engine_->Submit(MakeRequest(sinks.back(), 20, 30, seed)).ok());
  }
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->OnWorkerMessage(workers_[0]->id(), LeaveMessage());
  engine_->Snapshot();
  EXPECT_FALSE(workers_[0]->closed()) << "plans are still unanswered";
  for (const auto& worker : workers_) worker->Release();
  for (uint64_t seed = 0; seed < sinks.size(); ++seed) {
    ASSERT_TRUE(sinks[seed]->WaitForEnd(kPatience));
    EXPECT_TRUE(sinks[seed]->outcome().status.ok()) << sinks[seed]->outcome().status;
    ASSERT_EQ(sinks[seed]->tokens().size(), 30u);
    for (int i = 0; i < 30; ++i) {
      EXPECT_EQ(sinks[seed]->tokens()[i], FakeToken(seed, 20 + i, 1000));
    }
  }
  EXPECT_TRUE(workers_[0]->closed());
  EXPECT_EQ(spare.assignments().size(), 1u);
  const v1::GetClusterResponse report = engine_->Snapshot();
  EXPECT_EQ(report.epoch(), 2u);
  EXPECT_GT(report.counters().preemptions(), 0u) << "they paused";
  EXPECT_EQ(report.counters().requests_failed(), 0u);
  EXPECT_EQ(report.counters().full_blocks().used(), 0u);
}

// Without one: nothing new, what runs ends, then it may go.
TEST_F(EngineLoopTest, AWorkerThatNobodyCanReplaceStaysUntilItsStreamsHaveEnded) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  for (const auto& worker : workers_) worker->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 30, 9)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->OnWorkerMessage(workers_[1]->id(), LeaveMessage());
  ASSERT_TRUE(WaitUntil([&] { return !engine_->Serving(); }));
  const absl::Status refused = engine_->Submit(MakeRequest(sink(), 5, 5)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.ToString(), HasSubstr("leaving"));
  EXPECT_FALSE(workers_[1]->closed());
  for (const auto& worker : workers_) worker->Release();
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_TRUE(result->outcome().status.ok()) << result->outcome().status;
  ASSERT_TRUE(WaitUntil([&] { return workers_[1]->closed(); }));
  EXPECT_EQ(engine_->Snapshot().state(), v1::RECOVERING);
  Join();
  ASSERT_TRUE(WaitUntil([&] { return engine_->Serving(); }));
}

TEST_F(EngineLoopTest, TheLimitLetsALeaverGoAndEndsItsStreams) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  for (const auto& worker : workers_) worker->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 30, 9)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->OnWorkerMessage(workers_[1]->id(), LeaveMessage());
  ASSERT_TRUE(WaitUntil([&] { return !engine_->Serving(); }));
  // Not in one step, in which the workers would seem silent.
  for (int i = 0; i < 31; ++i) {
    clock_.Advance(absl::Seconds(1));
    for (const auto& worker : workers_) {
      engine_->OnWorkerMessage(worker->id(), HeartbeatMessage(1));
    }
    engine_->Snapshot();
  }
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_EQ(result->outcome().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(result->outcome().status.ToString(), HasSubstr("left"));
  EXPECT_TRUE(WaitUntil([&] { return workers_[1]->closed(); }));
}

// The substitute is lost before it has loaded: what waits does not wait for ever.
TEST_F(EngineLoopTest, PausedStreamsEndWhenNoGroupIsFormed) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  FakeWorker& spare = Join();
  for (const auto& worker : workers_) worker->HoldLoading();
  const auto result = sink();
  workers_[0]->Hold();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 30, 9)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->OnWorkerMessage(workers_[0]->id(), LeaveMessage());
  workers_[0]->Release();
  ASSERT_TRUE(WaitUntil([&] { return spare.assignments().size() == 1; }));
  EXPECT_FALSE(result->ended());
  engine_->OnWorkerGone(spare.id(), "killed");
  for (int i = 0; i < 31 && !result->ended(); ++i) {
    clock_.Advance(absl::Seconds(1));
    engine_->OnWorkerMessage(workers_[1]->id(), HeartbeatMessage(2));
    engine_->Snapshot();
  }
  ASSERT_TRUE(result->WaitForEnd(kPatience));
  EXPECT_EQ(result->outcome().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(result->outcome().status.ToString(), HasSubstr("1 of 2 workers"));
}

TEST_F(EngineLoopTest, WhatIsMeasuredAddsUp) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  for (int i = 0; i < 3; ++i) {
    const auto result = sink();
    ASSERT_TRUE(engine_->Submit(MakeRequest(result, 20, 10)).ok());
    ASSERT_TRUE(result->WaitForEnd(kPatience));
  }
  Request scored = MakeRequest(sink(), 7, 0);
  const auto scored_sink = sink();
  scored.prompt_logprobs = 0;
  scored.sink = scored_sink;
  ASSERT_TRUE(engine_->Submit(std::move(scored)).ok());
  ASSERT_TRUE(scored_sink->WaitForEnd(kPatience));
  const EngineMetrics metrics = engine_->Report().metrics;
  const auto count = [](const Histogram& histogram) {
    return std::accumulate(histogram.counts.begin(), histogram.counts.end(), uint64_t{0});
  };
  EXPECT_EQ(metrics.generated_tokens, 30u);
  EXPECT_EQ(metrics.classified_tokens, 7u);
  EXPECT_EQ(count(metrics.first_token), 3u);
  EXPECT_EQ(count(metrics.between_tokens), 27u);
  EXPECT_EQ(count(metrics.whole), 4u);
  EXPECT_EQ(count(metrics.queue), 4u);
  // A fake step takes a millisecond: the bucket that ends there.
  const uint64_t steps = engine_->Snapshot().counters().steps();
  EXPECT_EQ(metrics.steps[0].counts[3], steps);
  EXPECT_EQ(count(metrics.steps[2]), steps);
}

TEST_F(EngineLoopTest, StopEndsEverythingAndRefusesWhatFollows) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  workers_[0]->Hold();
  const auto result = sink();
  ASSERT_TRUE(engine_->Submit(MakeRequest(result, 5, 50)).ok());
  ASSERT_TRUE(workers_[0]->WaitForPlan());
  engine_->Stop();
  ASSERT_TRUE(result->ended());
  EXPECT_EQ(result->outcome().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(workers_[0]->closed());
  EXPECT_EQ(engine_->Submit(MakeRequest(sink(), 5, 5)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(engine_->Serving());
  engine_->Snapshot();
  engine_->Stop();
}

TEST_F(EngineLoopTest, ABadOptionIsRefusedByName) {
  EngineOptions options = SmallEngineOptions({.dp = 1, .tp = 1});
  options.cluster.max_running = 65;
  EXPECT_THAT(EngineLoop::Create(options, clock_).status().ToString(),
              HasSubstr("max_running is 65"));
  options = SmallEngineOptions({.dp = 1, .tp = 1});
  options.cluster.kv_cache_bytes = -1;
  EXPECT_THAT(EngineLoop::Create(options, clock_).status().ToString(), HasSubstr("kv_cache_bytes"));
}

// Many callers at once, a worker lost in the middle, and a stop: every request that was taken ends
// exactly once (the sink checks that), with a prefix of its true output.
TEST_F(EngineLoopTest, WhateverHappensEveryRequestEndsOnce) {
  Start({.dp = 2, .tp = 1});
  JoinAll();
  constexpr int kThreads = 4;
  constexpr int kRequests = 60;
  std::vector<std::vector<std::pair<uint64_t, std::shared_ptr<RecordingSink>>>> taken(kThreads);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kRequests; ++i) {
        const uint64_t seed = thread * 1000 + i;
        const auto one = sink();
        const auto id = engine_->Submit(MakeRequest(one, 1 + i % 40, 1 + i % 17, seed));
        if (!id.ok()) continue;
        taken[thread].emplace_back(seed, one);
        if (i % 5 == 0) engine_->Cancel(*id);
        if (thread == 0 && i == kRequests / 2) engine_->OnWorkerGone(1, "killed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine_->Stop();
  size_t ended = 0;
  for (int thread = 0; thread < kThreads; ++thread) {
    for (const auto& [seed, one] : taken[thread]) {
      ASSERT_TRUE(one->ended());
      ++ended;
      const int prompt = one->outcome().prompt_tokens;
      const std::vector<int> tokens = one->tokens();
      for (size_t i = 0; i < tokens.size(); ++i) {
        EXPECT_EQ(tokens[i], FakeToken(seed, prompt + static_cast<int>(i), 1000));
      }
    }
  }
  EXPECT_GT(ended, 0u);
}

// Each caller asks again as soon as it is answered, so that the mailbox is hardly ever empty.
TEST_F(EngineLoopTest, CallersWithoutEndDoNotKeepTheGroupFromForming) {
  Start({.dp = 1, .tp = 1});
  JoinAll();
  std::atomic<bool> ending = false;
  std::atomic<int> asked = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      while (!ending.load()) {
        engine_->Snapshot();
        ++asked;
      }
    });
  }
  engine_->OnWorkerMessage(workers_[0]->id(), FaultMessage(1, "no memory left"));
  EXPECT_TRUE(WaitUntil([this] { return !engine_->Serving(); }));
  const int before = asked.load();
  clock_.Advance(absl::Seconds(1));  // past the pause after a fault
  EXPECT_TRUE(WaitUntil([this] { return engine_->Serving(); }));
  // A few rounds.
  EXPECT_LE(asked.load() - before, 1000);
  ending.store(true);
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace conclave::coordinator
