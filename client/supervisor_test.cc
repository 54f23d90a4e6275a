#include "client/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

// Records what happens.
class Recorder : public Supervisor::Events {
 public:
  void OnLine(int child, bool is_stdout, const std::string& line) override {
    (is_stdout ? out : err).push_back(std::to_string(child) + ":" + line);
  }
  void OnExit(const Exit& exit) override { exits.push_back(exit); }

  std::vector<std::string> out, err;
  std::vector<Exit> exits;
};

ChildSpec Shell(const std::string& script) {
  return {.name = "shell", .argv = {"/bin/sh", "-c", script}, .log_file = ""};
}

// Steps until `done`, or a generous limit.
bool StepUntil(Supervisor& supervisor, const std::function<bool()>& done) {
  const absl::Time limit = absl::Now() + base::TimeScale() * absl::Seconds(20);
  while (!done() && absl::Now() < limit) supervisor.Step(absl::Milliseconds(20));
  return done();
}

bool Gone(pid_t pid) { return kill(pid, 0) != 0 && errno == ESRCH; }

SupervisorOptions Quick() {
  return {.restart = true,
          .backoff = {.first = absl::Milliseconds(10),
                      .most = absl::Milliseconds(40),
                      .stable = absl::Hours(1)},
          .stop_limit = absl::Milliseconds(300)};
}

TEST(SupervisorTest, LinesOfBothStreamsAreHandedOn) {
  Recorder recorder;
  Supervisor supervisor({.restart = false, .backoff = {}}, &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("echo one; echo two >&2; printf three")).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.exits.empty(); }));
  EXPECT_THAT(recorder.out, ElementsAre("0:one", "0:three"));
  EXPECT_THAT(recorder.err, ElementsAre("0:two"));
}

TEST(SupervisorTest, ADeadChildIsStartedAgainLaterEachTime) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("exit 3")).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return recorder.exits.size() >= 4; }));
  EXPECT_EQ(DescribeExit(recorder.exits[0].wait_status), "exit code 3");
  const std::vector<int> want = {10, 20, 40, 40};
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(recorder.exits[i].restart_in, absl::Milliseconds(want[i]));
    EXPECT_EQ(recorder.exits[i].failures, static_cast<int>(i) + 1);
  }
}

TEST(SupervisorTest, AKilledChildComesBackAsAnotherProcess) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("exec sleep 1000")).ok());
  const pid_t first = supervisor.pid(0);
  ASSERT_EQ(kill(first, SIGKILL), 0);
  ASSERT_TRUE(
      StepUntil(supervisor, [&] { return supervisor.pid(0) > 0 && supervisor.pid(0) != first; }));
  EXPECT_TRUE(WIFSIGNALED(recorder.exits[0].wait_status));
}

TEST(SupervisorTest, WithoutRestartADeadChildStaysDead) {
  Recorder recorder;
  SupervisorOptions options = Quick();
  options.restart = false;
  Supervisor supervisor(options, &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("exit 0")).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.exits.empty(); }));
  EXPECT_EQ(recorder.exits[0].restart_in, absl::InfiniteDuration());
  EXPECT_FALSE(supervisor.AnyRunning());
}

TEST(SupervisorTest, NewArgumentsCountFromTheNextStart) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("exec sleep 1000")).ok());
  supervisor.set_argv(0, Shell("echo again; exec sleep 1000").argv);
  ASSERT_EQ(kill(supervisor.pid(0), SIGKILL), 0);
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.out.empty(); }));
  EXPECT_THAT(recorder.out, ElementsAre("0:again"));
}

TEST(SupervisorTest, AChildThatWasStoppedAloneIsNotStartedAgain) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(supervisor.Start(Shell("exec sleep 1000")).ok());
  supervisor.StopChild(0);
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.exits.empty(); }));
  EXPECT_EQ(recorder.exits[0].restart_in, absl::InfiniteDuration());
  EXPECT_EQ(supervisor.pid(0), -1);
  EXPECT_GT(supervisor.pid(1), 0);
}

TEST(SupervisorTest, StopAllLeavesNoChild) {
  Recorder recorder;
  SupervisorOptions options = Quick();
  options.stop_limit = absl::Hours(1);
  Supervisor supervisor(options, &recorder);
  std::vector<pid_t> pids;
  for (int i = 0; i < 4; ++i) {
    const auto child = supervisor.Start(Shell("exec sleep 1000"));
    ASSERT_TRUE(child.ok());
    pids.push_back(supervisor.pid(*child));
  }
  supervisor.StopAll();
  for (const pid_t pid : pids) EXPECT_TRUE(Gone(pid)) << pid;
  EXPECT_EQ(recorder.exits.size(), pids.size());
}

TEST(SupervisorTest, AChildThatIgnoresTermIsKilledAfterTheLimit) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  ASSERT_TRUE(
      supervisor.Start(Shell("trap '' TERM; echo ready; while true; do sleep 0.01; done")).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.out.empty(); }));
  const pid_t pid = supervisor.pid(0);
  supervisor.StopAll();
  EXPECT_TRUE(Gone(pid));
  EXPECT_EQ(DescribeExit(recorder.exits.back().wait_status), "signal 9 (Killed)");
}

TEST(SupervisorTest, AStoppedChildEndsBeforeTheLimit) {
  Recorder recorder;
  SupervisorOptions options = Quick();
  options.stop_limit = absl::Hours(1);
  Supervisor supervisor(options, &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("exec sleep 1000")).ok());
  ASSERT_EQ(kill(supervisor.pid(0), SIGSTOP), 0);
  supervisor.StopAll();
  EXPECT_FALSE(supervisor.AnyRunning());
}

TEST(SupervisorTest, WhatAChildStartedItselfEndsWithIt) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  ASSERT_TRUE(supervisor.Start(Shell("sleep 1000 & echo $!; wait")).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.out.empty(); }));
  const pid_t grandchild = std::stoi(recorder.out[0].substr(2));
  ASSERT_TRUE(Alive(grandchild));
  supervisor.StopAll();
  EXPECT_TRUE(WaitUntil([&] { return !Alive(grandchild); }));
}

TEST(SupervisorTest, AMissingProgramIsAnError) {
  Recorder recorder;
  Supervisor supervisor(Quick(), &recorder);
  const auto child =
      supervisor.Start({.name = "x", .argv = {"/nonexistent/program"}, .log_file = ""});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
}

TEST(SupervisorTest, ALogFileTakesWhatIsNotAskedFor) {
  Recorder recorder;
  const std::string log = testing::TempDir() + "/supervisor_test.log";
  Supervisor supervisor({.restart = false, .backoff = {}}, &recorder);
  ChildSpec spec = Shell("echo out; echo err >&2");
  spec.log_file = log;
  ASSERT_TRUE(supervisor.Start(spec).ok());
  ASSERT_TRUE(StepUntil(supervisor, [&] { return !recorder.exits.empty(); }));
  EXPECT_THAT(recorder.out, Contains("0:out"));
  EXPECT_TRUE(recorder.err.empty());
  const auto logged = RunProcess({"/bin/cat", log}, absl::Seconds(10));
  ASSERT_TRUE(logged.ok());
  EXPECT_EQ(logged->out, "err\n");
}

TEST(ProcessTest, OutputAndExitAreCollected) {
  const auto finished =
      RunProcess({"/bin/sh", "-c", "echo a; echo b >&2; exit 4"}, absl::Seconds(20));
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_EQ(finished->out, "a\n");
  EXPECT_EQ(finished->err, "b\n");
  EXPECT_EQ(DescribeExit(finished->wait_status), "exit code 4");
}

TEST(ProcessTest, AProgramThatDoesNotEndIsKilled) {
  const auto finished = RunProcess({"/bin/sleep", "1000"}, absl::Milliseconds(50));
  EXPECT_EQ(finished.status().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace conclave::client
