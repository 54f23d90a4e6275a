// `conclave serve` with stand-ins for its children: a coordinator that serves nothing but health
// and status, and a worker that is a shell script.

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/exit_code.h"
#include "client/process.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ServeTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/serve_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    fs::create_symlink(fs::absolute("client/fake_coordinator"), dir_ / "conclave-coordinator");
    // A worker: notes its pid (when FAKE_WORKER_EXIT is unset) and waits.
    std::ofstream(dir_ / "conclave-worker")
        << "#!/bin/sh\n"
           "if [ \"$1\" = --probe ]; then\n"
           "  echo '{\"cuda\":{\"available\":false,\"reason\":\"kernel_not_built\"}}'; exit\n"
           "fi\n"
           "if [ -n \"$FAKE_WORKER_EXIT\" ]; then\n"
           "  echo 'no memory left' >&2; exit $FAKE_WORKER_EXIT\n"
           "fi\n"
           "echo $$ >> $FAKE_DIR/pids\n"
           "echo worker says hello >&2\n"
           "exec sleep 1000\n";
    fs::permissions(dir_ / "conclave-worker", fs::perms::owner_all);
    setenv("CONCLAVE_BIN_DIR", dir_.c_str(), 1);
    setenv("FAKE_DIR", dir_.c_str(), 1);
    unsetenv("FAKE_COORDINATOR_EXIT");
    unsetenv("FAKE_WORKER_EXIT");
  }

  void TearDown() override {
    if (serve_.pid > 0) {
      kill(serve_.pid, SIGKILL);
      waitpid(serve_.pid, nullptr, 0);
    }
    for (const int fd : {serve_.stdout_fd, serve_.stderr_fd}) {
      if (fd >= 0) close(fd);
    }
    fs::remove_all(dir_);
  }

  void Start(const std::vector<std::string>& more) {
    std::vector<std::string> argv = {ConclaveBinary(),    "serve",      "--model",
                                     "demo/tiny_gpt_oss", "--listen",   "127.0.0.1:0",
                                     "--internal-listen", "127.0.0.1:7"};
    argv.insert(argv.end(), more.begin(), more.end());
    const auto process = Spawn({.argv = argv, .log_file = ""});
    ASSERT_TRUE(process.ok()) << process.status();
    serve_ = *process;
  }

  // What serve printed until now.
  std::string Out() { return Read(serve_.stdout_fd, &out_); }
  std::string Err() { return Read(serve_.stderr_fd, &err_); }

  bool WaitForServing() {
    return WaitUntil([&] { return Out().find("serving ") != std::string::npos; });
  }

  // Reaps serve; returns its exit code, -1 when a signal ended it.
  int WaitForExit() {
    int status = 0;
    const bool ended =
        WaitUntil([&] { return waitpid(serve_.pid, &status, WNOHANG) == serve_.pid; });
    EXPECT_TRUE(ended) << "serve did not end: " << Err();
    if (!ended) return -1;
    serve_.pid = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::vector<pid_t> Workers() const { return Pids(dir_ / "pids"); }
  std::vector<pid_t> Coordinators() const { return Pids(dir_ / "coordinator_args"); }
  std::vector<pid_t> Children() const {
    std::vector<pid_t> all = Workers();
    for (const pid_t pid : Coordinators()) all.push_back(pid);
    return all;
  }
  bool NoneAlive() const {
    for (const pid_t pid : Children()) {
      if (Alive(pid)) return false;
    }
    return true;
  }

  fs::path dir_;
  Process serve_;

 private:
  // The number that each line begins with.
  static std::vector<pid_t> Pids(const fs::path& path) {
    std::ifstream file(path);
    std::vector<pid_t> pids;
    for (std::string line; std::getline(file, line);) pids.push_back(std::stoi(line));
    return pids;
  }

  static std::string Read(int fd, std::string* all) {
    char buffer[4096];
    for (ssize_t size; (size = read(fd, buffer, sizeof(buffer))) > 0;) all->append(buffer, size);
    return *all;
  }

  std::string out_, err_;
};

TEST_F(ServeTest, PrintsItsAddressesWhenRequestsAreAccepted) {
  Start({"--workers", "3", "--health-listen", "127.0.0.1:8"});
  ASSERT_TRUE(WaitForServing()) << Err();
  std::istringstream lines(Out());
  std::string internal, health, serving, more;
  std::getline(lines, internal);
  std::getline(lines, health);
  std::getline(lines, serving);
  EXPECT_EQ(internal, "internal 127.0.0.1:7");
  EXPECT_EQ(health, "health 127.0.0.1:8");
  ASSERT_THAT(serving, StartsWith("serving 127.0.0.1:"));
  EXPECT_FALSE(std::getline(lines, more)) << more;
  EXPECT_EQ(Workers().size(), 3u);
  Client client(serving.substr(sizeof("serving ") - 1));
  const auto accepted = client.Serving();
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  EXPECT_TRUE(*accepted);
}

TEST_F(ServeTest, ChildrensLinesNameTheChild) {
  Start({"--workers", "2"});
  ASSERT_TRUE(WaitUntil([&] {
    return Err().find("[worker 0] worker says hello\n") != std::string::npos &&
           Err().find("[worker 1] worker says hello\n") != std::string::npos;
  })) << Err();
}

TEST_F(ServeTest, InterruptLeavesNoProcess) {
  for (const int signal : {SIGINT, SIGTERM}) {
    fs::remove(dir_ / "pids");
    fs::remove(dir_ / "coordinator_args");
    Start({"--workers", "2"});
    ASSERT_TRUE(WaitUntil([&] { return Workers().size() == 2; })) << Err();
    ASSERT_EQ(kill(serve_.pid, signal), 0);
    EXPECT_EQ(WaitForExit(), kExitOk) << Err();
    EXPECT_EQ(Children().size(), 3u);
    EXPECT_TRUE(NoneAlive());
  }
}

TEST_F(ServeTest, KillingServeLeavesNoProcess) {
  Start({"--workers", "2"});
  ASSERT_TRUE(WaitForServing()) << Err();
  ASSERT_EQ(kill(serve_.pid, SIGKILL), 0);
  EXPECT_EQ(WaitForExit(), -1);
  EXPECT_TRUE(WaitUntil([&] { return NoneAlive(); }));
}

TEST_F(ServeTest, AKilledWorkerIsStartedAgain) {
  Start({"--workers", "2"});
  ASSERT_TRUE(WaitForServing()) << Err();
  ASSERT_EQ(kill(Workers()[0], SIGKILL), 0);
  EXPECT_TRUE(WaitUntil([&] { return Workers().size() == 3; })) << Err();
  EXPECT_THAT(Err(), HasSubstr("signal 9 (Killed); starting it again in 0.5 s"));
}

TEST_F(ServeTest, AKilledCoordinatorComesBackAtTheSameAddress) {
  Start({"--workers", "1"});
  ASSERT_TRUE(WaitForServing()) << Err();
  const std::string address = Out().substr(Out().find("serving ") + 8);
  ASSERT_EQ(kill(Coordinators()[0], SIGKILL), 0);
  ASSERT_TRUE(WaitUntil([&] { return Coordinators().size() == 2; })) << Err();
  std::ifstream file(dir_ / "coordinator_args");
  std::string first, second;
  std::getline(file, first);
  std::getline(file, second);
  EXPECT_THAT(second, HasSubstr("--listen " + address.substr(0, address.find('\n')) + " "));
  EXPECT_TRUE(WaitUntil([&] { return Err().find("serving again") != std::string::npos; }));
}

TEST_F(ServeTest, NoRestartLeavesADeadWorkerDead) {
  Start({"--workers", "2", "--no-restart"});
  ASSERT_TRUE(WaitForServing()) << Err();
  ASSERT_EQ(kill(Workers()[0], SIGKILL), 0);
  ASSERT_TRUE(WaitUntil([&] {
    return Err().find("not started again (--no-restart)") != std::string::npos;
  })) << Err();
  EXPECT_TRUE(Alive(serve_.pid));
  EXPECT_TRUE(Alive(Workers()[1]));
  EXPECT_TRUE(Alive(Coordinators()[0]));
}

TEST_F(ServeTest, NoRestartEndsWithTheCoordinator) {
  Start({"--workers", "1", "--no-restart"});
  ASSERT_TRUE(WaitForServing()) << Err();
  ASSERT_EQ(kill(Coordinators()[0], SIGKILL), 0);
  EXPECT_EQ(WaitForExit(), kExitError);
  EXPECT_THAT(Err(), HasSubstr("coordinator ended with signal 9 (Killed)"));
  EXPECT_TRUE(NoneAlive());
}

TEST_F(ServeTest, ACoordinatorThatCannotStartEndsServeWithItsReason) {
  setenv("FAKE_COORDINATOR_EXIT", "3", 1);
  Start({"--workers", "1"});
  EXPECT_EQ(WaitForExit(), kExitError);
  EXPECT_THAT(Err(),
              HasSubstr("conclave serve: INTERNAL: coordinator ended with exit code 3 before "
                        "it listened: the fake coordinator was told to fail\n"));
}

TEST_F(ServeTest, AWorkerThatNeverStartsEndsServeWithItsReason) {
  setenv("FAKE_WORKER_EXIT", "4", 1);
  Start({"--workers", "1", "--no-restart"});
  EXPECT_EQ(WaitForExit(), kExitError);
  EXPECT_THAT(Err(), HasSubstr("worker 0 ended with exit code 4 before the service was ready: no "
                               "memory left\n"));
  EXPECT_TRUE(NoneAlive());
}

TEST_F(ServeTest, AWorkerThatKeepsEndingIsGivenUp) {
  setenv("FAKE_WORKER_EXIT", "4", 1);
  Start({"--workers", "1"});
  EXPECT_EQ(WaitForExit(), kExitError);
  EXPECT_THAT(Err(), HasSubstr("for the 5th time before the service was ready: no memory left\n"));
}

TEST_F(ServeTest, LogsGoToFilesWhenAsked) {
  Start({"--workers", "1", "--log-dir", (dir_ / "logs").string()});
  ASSERT_TRUE(WaitForServing()) << Err();
  ASSERT_TRUE(WaitUntil([&] { return fs::file_size(dir_ / "logs/worker-0.log") > 0; }));
  std::ifstream file(dir_ / "logs/worker-0.log");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "worker says hello");
  EXPECT_EQ(Err().find("worker says hello"), std::string::npos);
}

TEST_F(ServeTest, CudaWithoutABackendIsRefusedBeforeAnythingStarts) {
  Start({"--workers", "1", "--device", "cuda"});
  EXPECT_EQ(WaitForExit(), kExitError);
  EXPECT_THAT(Err(), HasSubstr("this build has no CUDA backend"));
  EXPECT_TRUE(Children().empty());
}

TEST_F(ServeTest, DoctorPrintsTheProbe) {
  const CommandResult json = RunConclave({"doctor", "--json"});
  EXPECT_EQ(json.out, "{\"cuda\":{\"available\":false,\"reason\":\"kernel_not_built\"}}\n");
  EXPECT_THAT(RunConclave({"doctor"}).out, HasSubstr("not available: this build has no CUDA"));
  fs::remove(dir_ / "conclave-worker");
  const CommandResult missing = RunConclave({"doctor"});
  EXPECT_EQ(missing.code, kExitError);
  EXPECT_THAT(missing.err, HasSubstr("bazel build //worker:conclave-worker"));
}

}  // namespace
}  // namespace conclave::client
