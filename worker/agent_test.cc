#include "worker/agent.h"

#include <unistd.h>

#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/device_lost.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/agent_testing.h"

namespace conclave::worker {
namespace {

using testing::HasSubstr;

AgentOptions Options(const FakeCoordinator& coordinator) {
  AgentOptions options;
  options.coordinator = coordinator.address();
  options.registration.set_device("cpu");
  options.registration.set_host("test-host");
  options.free_memory_bytes = [] { return uint64_t{4096}; };
  options.heartbeat_interval = absl::Milliseconds(5);
  options.min_backoff = absl::Milliseconds(5);
  options.max_backoff = absl::Milliseconds(20);
  options.end_limit = absl::Minutes(1);
  options.on_stuck = [] { std::abort(); };
  options.on_device_lost = [] { std::abort(); };
  return options;
}

// An agent that runs until the test ends.
class WorkerAgentTest : public testing::Test {
 protected:
  ~WorkerAgentTest() override {
    if (!thread_.joinable()) return;
    agent_->Stop();
    EXPECT_EQ(Join(), absl::OkStatus());
  }

  // Starts the agent and takes its registration.
  internal::v1::Register Start() { return Start(Options(coordinator_)); }
  internal::v1::Register Start(AgentOptions options) {
    agent_ = std::make_unique<WorkerAgent>(std::move(options), runtime_);
    thread_ = std::thread([this] { ended_ = agent_->Run(); });
    return coordinator_.Next().register_();
  }
  absl::Status Join() {
    thread_.join();
    return ended_;
  }
  void ExpectReady(uint64_t epoch) {
    const internal::v1::WorkerMessage message = coordinator_.Next();
    ASSERT_TRUE(message.has_ready()) << message.DebugString();
    EXPECT_EQ(message.ready().epoch(), epoch);
  }
  void ExpectResult(uint64_t epoch, uint64_t step) {
    const internal::v1::WorkerMessage message = coordinator_.Next();
    ASSERT_TRUE(message.has_step_result()) << message.DebugString();
    EXPECT_EQ(message.step_result().epoch(), epoch);
    EXPECT_EQ(message.step_result().step(), step);
    EXPECT_EQ(message.step_result().step_ns(), 1000 + step);
  }
  internal::v1::Fault ExpectFault(uint64_t epoch) {
    const internal::v1::WorkerMessage message = coordinator_.Next();
    EXPECT_TRUE(message.has_fault()) << message.DebugString();
    EXPECT_EQ(message.fault().epoch(), epoch);
    return message.fault();
  }

  FakeCoordinator coordinator_;
  FakeRuntime runtime_;
  std::unique_ptr<WorkerAgent> agent_;
  std::thread thread_;
  absl::Status ended_;
};

TEST_F(WorkerAgentTest, RegistersOnceAndSendsHeartbeatsWithTheStatisticsOfTheLastStep) {
  const internal::v1::Register registration = Start();
  EXPECT_EQ(registration.protocol_version(), internal::v1::PROTOCOL_VERSION_CURRENT);
  EXPECT_EQ(registration.host(), "test-host");
  EXPECT_EQ(registration.free_memory_bytes(), 4096u);
  EXPECT_FALSE(registration.has_previous_rank());
  EXPECT_EQ(coordinator_.NextHeartbeat().epoch(), 0u);
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  ExpectResult(1, 0);
  internal::v1::Heartbeat heartbeat;
  do heartbeat = coordinator_.NextHeartbeat();
  while (heartbeat.stats().dispatched_copies() != 1);
  EXPECT_EQ(heartbeat.epoch(), 1u);
  EXPECT_EQ(heartbeat.free_memory_bytes(), 4096u);
  EXPECT_TRUE(agent_->Alive(absl::ZeroDuration()));
}

TEST_F(WorkerAgentTest, PlansStartBeforeTheOneBeforeHasEndedAndAreAnsweredInOrder) {
  // Nothing ends by itself before the last: the results of the others come because two plans may be
  // started at once, and because a plan that must run alone waits for both.
  runtime_.starts = [](uint64_t step) { return step != 3; };
  runtime_.has_ended = [](uint64_t step) { return step == 4; };
  AgentOptions options = Options(coordinator_);
  options.heartbeat_interval = absl::Hours(1);  // statistics would wait for results, too
  Start(std::move(options));
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  for (uint64_t step = 0; step < 5; ++step) coordinator_.Plan(1, step);
  for (uint64_t step = 0; step < 5; ++step) ExpectResult(1, step);
  agent_->Stop();
  EXPECT_EQ(Join(), absl::OkStatus());
  EXPECT_THAT(runtime_.calls,
              testing::ElementsAre("start 0", "start 1", "finish 0", "start 2", "finish 1",
                                   "finish 2", "step 3", "start 4", "finish 4"));
}

TEST_F(WorkerAgentTest, AnEpochThatEndsForgetsWhatWasStarted) {
  runtime_.starts = [](uint64_t) { return true; };
  runtime_.has_ended = [](uint64_t) { return false; };
  AgentOptions options = Options(coordinator_);
  options.heartbeat_interval = absl::Hours(1);
  Start(std::move(options));
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  coordinator_.Assign(2, 0);
  ExpectReady(2);
}

TEST_F(WorkerAgentTest, AnAssignmentThatContinuesEndsTheEpochBeforeItKeepingItsSequences) {
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  internal::v1::Assignment next;
  next.set_epoch(2);
  next.set_continues(true);
  coordinator_.Assign(next);
  ExpectReady(2);
  EXPECT_EQ(runtime_.ends(), 1);
  EXPECT_EQ(runtime_.continued(), 1);
  coordinator_.Plan(2, 0);
  ExpectResult(2, 0);
  coordinator_.Assign(3, 0);
  ExpectReady(3);
  EXPECT_EQ(runtime_.ends(), 2);
  EXPECT_EQ(runtime_.continued(), 1);
}

TEST_F(WorkerAgentTest, LoadsWithProgressAndRendezvousThroughTheCoordinator) {
  std::string got;
  runtime_.on_begin = [&](const internal::v1::Assignment& assignment, Rendezvous& rendezvous,
                          const RankRuntime::Progress& progress) -> absl::Status {
    EXPECT_EQ(assignment.rank(), 3u);
    absl::Status put = rendezvous.Put("key", std::string("va\0lue", 6));
    if (!put.ok()) return put;
    absl::StatusOr<std::string> value = rendezvous.Get("key", absl::Minutes(1));
    if (!value.ok()) return value.status();
    got = *value;
    EXPECT_EQ(rendezvous.Get("nobody", absl::Milliseconds(20)).status().code(),
              absl::StatusCode::kDeadlineExceeded);
    progress(5, 10);
    progress(10, 10);
    return absl::OkStatus();
  };
  Start();
  coordinator_.Assign(7, 3);
  internal::v1::WorkerMessage first = coordinator_.Next();
  ASSERT_TRUE(first.has_load_progress());
  EXPECT_EQ(first.load_progress().epoch(), 7u);
  EXPECT_EQ(first.load_progress().loaded_bytes(), 5u);
  EXPECT_EQ(first.load_progress().total_bytes(), 10u);
  EXPECT_EQ(coordinator_.Next().load_progress().loaded_bytes(), 10u);
  ExpectReady(7);
  EXPECT_EQ(got, std::string("va\0lue", 6));
}

TEST_F(WorkerAgentTest, AnswersPlansInOrder) {
  Start();
  coordinator_.Assign(1, 0);
  for (uint64_t step = 0; step < 20; ++step) coordinator_.Plan(1, step);
  ExpectReady(1);
  for (uint64_t step = 0; step < 20; ++step) ExpectResult(1, step);
}

TEST_F(WorkerAgentTest, AGapInThePlansIsAFaultAndNothingFollowsIt) {
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  coordinator_.Plan(1, 2);
  coordinator_.Plan(1, 1);
  ExpectResult(1, 0);
  const internal::v1::Fault fault = ExpectFault(1);
  EXPECT_EQ(fault.code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_THAT(fault.message(), HasSubstr("plan 2 where 1 is next"));
  coordinator_.Assign(2, 0);
  ExpectReady(2);  // plan 1 was not answered in between
}

TEST_F(WorkerAgentTest, MessagesOfOlderEpochsAreDropped) {
  Start();
  coordinator_.Assign(5, 0);
  ExpectReady(5);
  coordinator_.Assign(4, 1);
  coordinator_.Assign(5, 1);
  coordinator_.Plan(4, 0);
  coordinator_.EndEpoch(4);
  coordinator_.Plan(5, 0);
  ExpectResult(5, 0);
  coordinator_.EndEpoch(5);
  coordinator_.Plan(5, 1);
  coordinator_.Assign(6, 0);
  ExpectReady(6);
  coordinator_.Plan(5, 2);
  coordinator_.Plan(6, 0);
  ExpectResult(6, 0);
  EXPECT_EQ(runtime_.ends(), 1);
}

TEST_F(WorkerAgentTest, AFailedStepIsAFaultAndTheNextEpochWorks) {
  std::atomic<bool> failing = true;
  runtime_.on_step = [&](const internal::v1::StepPlan&) {
    return failing ? absl::UnavailableError("a peer is gone") : absl::OkStatus();
  };
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  coordinator_.Plan(1, 1);
  const internal::v1::Fault fault = ExpectFault(1);
  EXPECT_EQ(fault.code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(fault.message(), "a peer is gone");
  failing = false;
  coordinator_.Assign(2, 0);
  ExpectReady(2);
  coordinator_.Plan(2, 0);
  ExpectResult(2, 0);
}

TEST_F(WorkerAgentTest, AFailedLoadIsAFault) {
  runtime_.on_begin = [](const auto&, auto&, const auto&) {
    return absl::InvalidArgumentError("config.json: hidden_size is missing");
  };
  Start();
  coordinator_.Assign(1, 0);
  EXPECT_EQ(ExpectFault(1).message(), "config.json: hidden_size is missing");
}

TEST_F(WorkerAgentTest, ANewAssignmentTakesTheStepThreadOutOfARunningStep) {
  absl::Notification in_step;
  runtime_.on_step = [&](const internal::v1::StepPlan& plan) {
    if (plan.epoch() != 1) return absl::OkStatus();
    in_step.Notify();
    return runtime_.WaitForAbort();
  };
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  in_step.WaitForNotification();
  coordinator_.Assign(2, 1);
  ExpectFault(1);  // of the step that was cut short
  ExpectReady(2);
  coordinator_.Plan(2, 0);
  ExpectResult(2, 0);
}

TEST_F(WorkerAgentTest, TheEndOfAnEpochCutsLoadingAndWaitingForPeersShort) {
  absl::Notification waiting;
  runtime_.on_begin = [&](const internal::v1::Assignment& assignment, Rendezvous& rendezvous,
                          const RankRuntime::Progress&) {
    if (assignment.epoch() != 1) return absl::OkStatus();
    waiting.Notify();
    return rendezvous.Get("never put", absl::InfiniteDuration()).status();
  };
  Start();
  coordinator_.Assign(1, 0);
  waiting.WaitForNotification();
  coordinator_.EndEpoch(1);
  EXPECT_EQ(ExpectFault(1).code(), static_cast<int>(absl::StatusCode::kAborted));
  coordinator_.Assign(2, 0);
  ExpectReady(2);
}

TEST_F(WorkerAgentTest, ALostStreamEndsTheEpochAndRejoinsWithThePreviousRank) {
  absl::Notification in_step;
  runtime_.on_step = [&](const internal::v1::StepPlan&) {
    if (in_step.HasBeenNotified()) return absl::OkStatus();
    in_step.Notify();
    return runtime_.WaitForAbort();
  };
  Start();
  coordinator_.Assign(9, 2);
  ExpectReady(9);
  coordinator_.Plan(9, 0);
  in_step.WaitForNotification();
  coordinator_.Hangup();
  const internal::v1::WorkerMessage again = coordinator_.Next();
  ASSERT_TRUE(again.has_register_()) << again.DebugString();
  EXPECT_EQ(again.register_().previous_rank(), 2u);
  EXPECT_EQ(runtime_.ends(), 1);
  // A restarted coordinator counts from 1 again.
  coordinator_.Assign(1, 2);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  ExpectResult(1, 0);
}

TEST(WorkerAgent, WaitsForACoordinatorThatIsNotThereYet) {
  FakeRuntime runtime;
  auto gone = std::make_unique<FakeCoordinator>();
  const int port = gone->port();
  WorkerAgent agent(Options(*gone), runtime);
  gone.reset();
  absl::Status ended = absl::UnknownError("runs");
  std::thread run([&] { ended = agent.Run(); });
  FakeCoordinator late(port);
  EXPECT_TRUE(late.Next().has_register_());
  agent.Stop();
  run.join();
  EXPECT_EQ(ended, absl::OkStatus());
}

TEST_F(WorkerAgentTest, ARefusalEndsTheWorkerWithTheReason) {
  Start();
  coordinator_.Refuse("the group is complete");
  const absl::Status ended = Join();
  EXPECT_EQ(ended.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ended.message(), "the group is complete");
}

TEST_F(WorkerAgentTest, WithoutRejoinALostStreamEndsTheWorker) {
  AgentOptions options = Options(coordinator_);
  options.rejoin = false;
  Start(std::move(options));
  coordinator_.Hangup();
  EXPECT_EQ(Join().code(), absl::StatusCode::kUnavailable);
}

TEST_F(WorkerAgentTest, ALeaverComputesUntilItIsLetGo) {
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  agent_->Leave();
  EXPECT_TRUE(coordinator_.Next().has_leave());
  coordinator_.Plan(1, 0);
  ExpectResult(1, 0);
  coordinator_.Plan(1, 1);
  ExpectResult(1, 1);  // and Leave was said once
  coordinator_.EndEpoch(1);
  coordinator_.Hangup();
  EXPECT_EQ(Join(), absl::OkStatus()) << "it did not join again";
}

TEST_F(WorkerAgentTest, LeaveIsStopWhereNobodyCouldLetItGo) {
  Start();
  agent_->Leave();
  EXPECT_EQ(Join(), absl::OkStatus());
}

TEST_F(WorkerAgentTest, StopLeavesARunningStep) {
  absl::Notification in_step;
  runtime_.on_step = [&](const internal::v1::StepPlan&) {
    in_step.Notify();
    return runtime_.WaitForAbort();
  };
  Start();
  coordinator_.Assign(1, 0);
  ExpectReady(1);
  coordinator_.Plan(1, 0);
  in_step.WaitForNotification();
  agent_->Stop();
  EXPECT_EQ(Join(), absl::OkStatus());
}

// An agent from its registration to its first plan, then `after_plan`, then until it ends.
void RunToFirstPlan(FakeCoordinator& coordinator, FakeRuntime& runtime, AgentOptions options,
                    const std::function<void()>& after_plan) {
  WorkerAgent agent(std::move(options), runtime);
  std::thread run([&] { EXPECT_EQ(agent.Run(), absl::OkStatus()); });
  coordinator.Next();
  coordinator.Assign(1, 0);
  coordinator.Next();
  coordinator.Plan(1, 0);
  after_plan();
  run.join();
}

void RunStuckWorker() {
  FakeCoordinator coordinator;
  FakeRuntime runtime;
  absl::Notification in_step;
  runtime.on_step = [&](const internal::v1::StepPlan&) {
    in_step.Notify();
    for (;;) pause();  // whatever Abort says
    return absl::OkStatus();
  };
  AgentOptions options = Options(coordinator);
  options.end_limit = absl::Milliseconds(50);
  options.on_stuck = [] { _exit(3); };
  RunToFirstPlan(coordinator, runtime, std::move(options), [&] {
    in_step.WaitForNotification();
    coordinator.EndEpoch(1);
  });
}

TEST(WorkerAgentDeathTest, AStepThreadThatCannotLeaveItsEpochEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunStuckWorker(), testing::ExitedWithCode(3), "step_thread_stuck");
}

void RunWorkerThatLosesItsDevice() {
  FakeCoordinator coordinator;
  FakeRuntime runtime;
  runtime.on_step = [&](const internal::v1::StepPlan&) {
    return base::DeviceLostError("an illegal memory access was encountered");
  };
  AgentOptions options = Options(coordinator);
  options.on_device_lost = [] { _exit(4); };
  RunToFirstPlan(coordinator, runtime, std::move(options), [] {});
}

TEST(WorkerAgentDeathTest, ADeviceThatIsLostEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(RunWorkerThatLosesItsDevice(), testing::ExitedWithCode(4), "device_lost");
}

}  // namespace
}  // namespace conclave::worker
