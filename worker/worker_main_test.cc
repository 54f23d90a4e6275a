// The worker's command line, by running it.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/agent_testing.h"

namespace conclave::worker {
namespace {

using testing::HasSubstr;

constexpr char kWorker[] = "worker/conclave-worker";

struct Outcome {
  int exit_code = -1;
  std::string output;  // of both streams
};

Outcome RunWorker(const std::string& arguments) {
  Outcome outcome;
  FILE* pipe = popen((std::string(kWorker) + " " + arguments + " 2>&1").c_str(), "r");
  std::array<char, 4096> chunk;
  while (size_t bytes = fread(chunk.data(), 1, chunk.size(), pipe)) {
    outcome.output.append(chunk.data(), bytes);
  }
  outcome.exit_code = WEXITSTATUS(pclose(pipe));
  return outcome;
}

TEST(WorkerCommand, ProbeIsOneJsonObject) {
  const Outcome outcome = RunWorker("--probe");
  EXPECT_EQ(outcome.exit_code, 0);
  const nlohmann::json probe = nlohmann::json::parse(outcome.output, nullptr, false);
  ASSERT_TRUE(probe.is_object()) << outcome.output;
  EXPECT_EQ(probe["device"], "cpu");
  EXPECT_EQ(probe["mxfp4"], "native");
  EXPECT_EQ(probe["fallback_reason"], "");
  for (const char* name : {"device_name", "kernel", "instruction_set", "gloo"}) {
    EXPECT_FALSE(probe[name].get<std::string>().empty()) << name;
  }
  EXPECT_GT(probe["threads"], 0);
  EXPECT_GT(probe["memory_bytes"], 0);
  EXPECT_EQ(probe["cuda"]["available"], false);
  EXPECT_THAT(probe["cuda"]["reason"].get<std::string>(),
              testing::AnyOf("no_gpu", "kernel_not_built"));
}

TEST(WorkerCommand, HelpHasAnExample) {
  const Outcome outcome = RunWorker("--help");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("conclave-worker --coordinator "));
}

TEST(WorkerCommand, AnErrorIsOneLineAndUsageIsExitCodeTwo) {
  const std::string joined =
      "--coordinator 127.0.0.1:1 --advertise-address 127.0.0.1 --interface lo ";
  const struct {
    std::string arguments;
    int exit_code;
    std::string message;
  } cases[] = {
      {"", 2, "--coordinator HOST:PORT is required"},
      {"--coordinator 127.0.0.1:1", 2, "--advertise-address A is required"},
      {joined + "--bogus", 2, "--bogus"},
      {joined + "--threads many", 2, "--threads"},
      {joined + "--device tpu", 2, "cpu"},
      {joined + "--log-level loud", 2, "loud"},
      {joined + "--device cuda", 1, "use --device cpu"},
      {"--coordinator 127.0.0.1:1 --advertise-address 127.0.0.1 --interface nosuch0", 1,
       "interface 'nosuch0' has no address; this machine has lo 127.0.0.1"},
      {"--coordinator 127.0.0.1:1 --advertise-address 203.0.113.9 --interface lo", 1,
       "address '203.0.113.9' is none of this machine's (lo 127.0.0.1"},
      {joined + "--health-listen nonsense", 1, "nonsense"},
      {joined + "--no-rejoin --log-level off", 1, "127.0.0.1:1"},
  };
  for (const auto& [arguments, exit_code, message] : cases) {
    const Outcome outcome = RunWorker(arguments);
    EXPECT_EQ(outcome.exit_code, exit_code) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr(message)) << arguments;
    EXPECT_THAT(outcome.output, testing::StartsWith("conclave-worker: "));
    EXPECT_EQ(outcome.output.find('\n'), outcome.output.size() - 1) << outcome.output;
  }
}

// A worker that has joined a coordinator of ours.
class JoinedWorker : public testing::Test {
 protected:
  void SetUp() override {
    const std::string address = coordinator_.address();
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      execl(kWorker, kWorker, "--coordinator", address.c_str(), "--advertise-address", "127.0.0.1",
            "--interface", "lo", "--log-level", "error", nullptr);
      _exit(127);
    }
    registration_ = coordinator_.Next().register_();
  }
  int ExitCode() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  FakeCoordinator coordinator_;
  pid_t pid_ = 0;
  internal::v1::Register registration_;
};

TEST_F(JoinedWorker, RegistersItselfAndStopsCleanlyOnSigterm) {
  EXPECT_EQ(registration_.pid(), pid_);
  EXPECT_EQ(registration_.device(), "cpu");
  EXPECT_FALSE(registration_.kernel().empty());
  EXPECT_FALSE(registration_.host_id().empty());
  EXPECT_GT(registration_.total_memory_bytes(), registration_.free_memory_bytes());
  ASSERT_EQ(kill(pid_, SIGTERM), 0);
  EXPECT_EQ(ExitCode(), 0);
}

TEST_F(JoinedWorker, ARefusalIsExitCodeOne) {
  coordinator_.Refuse("the group is complete");
  EXPECT_EQ(ExitCode(), 1);
}

}  // namespace
}  // namespace conclave::worker
