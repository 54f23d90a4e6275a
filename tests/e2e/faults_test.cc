// Guarantees 1, 2 and 6 when a worker dies or stops: every stream ends once, UNAVAILABLE, after a
// prefix of the true output; health follows; the service comes back.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

constexpr int kLong = 220;

bool IsReady(const v1::GetClusterResponse& cluster) { return cluster.state() == v1::READY; }

// Streams that keep going, one thread each, until the service fails them.
class Streams {
 public:
  Streams(std::shared_ptr<grpc::Channel> channel, std::vector<Tokens> prompts)
      : channel_(std::move(channel)), prompts_(std::move(prompts)), results_(prompts_.size()) {
    for (size_t i = 0; i < prompts_.size(); ++i) threads_.emplace_back([this, i] { Run(i); });
  }
  ~Streams() { Join(); }

  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  // Waits until every stream has had tokens.
  bool WaitForTokens(absl::Duration limit) {
    absl::MutexLock lock(&mutex_);
    const auto all = [this] { return started_ == prompts_.size(); };
    return mutex_.AwaitWithTimeout(absl::Condition(&all), limit);
  }

  struct Result {
    Tokens partial;  // of the stream that failed
    grpc::Status status;
    absl::Time ended;
  };
  const std::vector<Result>& results() const { return results_; }

 private:
  // One stream after another, so that one is always under way when the fault comes.
  void Run(size_t i) {
    for (bool first = true;; first = false) {
      grpc::ClientContext context;
      auto reader = v1::GenerationService::NewStub(channel_)->Generate(
          &context, GreedyRequest(prompts_[i], kLong));
      Result result;
      v1::GenerateResponse response;
      while (reader->Read(&response)) {
        result.partial.insert(result.partial.end(), response.tokens().begin(),
                              response.tokens().end());
        if (first) {
          absl::MutexLock lock(&mutex_);
          ++started_;
          first = false;
        }
      }
      result.status = reader->Finish();
      result.ended = absl::Now();
      if (!result.status.ok()) {
        results_[i] = result;
        return;
      }
    }
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::vector<Tokens> prompts_;
  std::vector<Result> results_;
  std::vector<std::thread> threads_;
  absl::Mutex mutex_;  // guards started_
  size_t started_ = 0;
};

class FaultsTest : public ::testing::Test {
 protected:
  FaultsTest() : server_({.workers = 4, .args = {}}) {}

  void SetUp() override {
    ASSERT_TRUE(server_.WaitServing()) << server_.log();
    prompts_ = RandomPrompts(8, 30);
    for (const Tokens& prompt : prompts_) {
      auto tokens = GenerateOne(server_.channel(), GreedyRequest(prompt, kLong));
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      truth_.push_back(*tokens);
    }
  }

  pid_t WorkerPid(int rank) { return static_cast<pid_t>(server_.Cluster().ranks(rank).pid()); }

  // `signal` to a worker while streams run: all end UNAVAILABLE within `limit`, health turns.
  void ExpectStreamsEnd(int signal, absl::Duration limit) {
    const pid_t victim = WorkerPid(2);
    Streams streams(server_.channel(), prompts_);
    ASSERT_TRUE(streams.WaitForTokens(Scaled(absl::Seconds(30))));
    const absl::Time start = absl::Now();
    ASSERT_EQ(::kill(victim, signal), 0);
    bool unhealthy = false;
    while (absl::Now() < start + limit && !(unhealthy = !server_.Healthy())) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    EXPECT_TRUE(unhealthy) << "still SERVING";
    streams.Join();
    for (size_t i = 0; i < prompts_.size(); ++i) {
      const Streams::Result& result = streams.results()[i];
      EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE)
          << result.status.error_message();
      EXPECT_LE(result.ended - start, limit);
      ASSERT_LE(result.partial.size(), truth_[i].size());
      EXPECT_TRUE(std::equal(result.partial.begin(), result.partial.end(), truth_[i].begin()));
    }
  }

  void ExpectRecovery(uint64_t old_epoch) {
    ASSERT_TRUE(server_.WaitForCluster(
        [&](const auto& cluster) { return IsReady(cluster) && cluster.epoch() > old_epoch; },
        Scaled(absl::Seconds(30))))
        << server_.log();
    bool healthy = false;
    for (int i = 0; i < 500 && !(healthy = server_.Healthy()); ++i) {
      absl::SleepFor(absl::Milliseconds(20));
    }
    EXPECT_TRUE(healthy);
    const auto again = GenerateOne(server_.channel(), GreedyRequest(prompts_[0], kLong));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, truth_[0]);
  }

  Server server_;
  std::vector<Tokens> prompts_;
  std::vector<Tokens> truth_;
};

TEST_F(FaultsTest, AKilledWorkerEndsEveryStreamWithinTwoSecondsAndTheServiceReturns) {
  const uint64_t epoch = server_.Cluster().epoch();
  ExpectStreamsEnd(SIGKILL, Scaled(absl::Seconds(2)));
  ExpectRecovery(epoch);
}

TEST_F(FaultsTest, AStoppedWorkerEndsEveryStreamWithinTenSecondsAndTheServiceReturns) {
  const uint64_t epoch = server_.Cluster().epoch();
  const pid_t victim = WorkerPid(2);
  ExpectStreamsEnd(SIGSTOP, Scaled(absl::Seconds(10)));
  ASSERT_EQ(::kill(victim, SIGCONT), 0);
  ExpectRecovery(epoch);
}

TEST_F(FaultsTest, SurvivorsKeepTheirProcess) {
  const uint64_t epoch = server_.Cluster().epoch();
  std::vector<pid_t> before;
  for (int rank = 0; rank < 4; ++rank) before.push_back(WorkerPid(rank));
  ASSERT_EQ(::kill(before[1], SIGKILL), 0);
  ExpectRecovery(epoch);
  int kept = 0;
  for (int rank = 0; rank < 4; ++rank) kept += WorkerPid(rank) == before[rank] ? 1 : 0;
  EXPECT_EQ(kept, 3);
}

TEST_F(FaultsTest, CtrlCLeavesNoProcessBehind) {
  std::vector<pid_t> pids;
  for (int rank = 0; rank < 4; ++rank) pids.push_back(WorkerPid(rank));
  pids.push_back(server_.CoordinatorPid());
  ASSERT_GT(pids.back(), 0);
  const int status = server_.Stop(SIGINT);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  for (pid_t pid : pids) {
    EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(pid))) << pid;
  }
}

TEST(FaultsWithoutRestartTest, NoRestartLeavesTheGroupIncomplete) {
  Server server({.workers = 2, .args = {"--no-restart"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ASSERT_EQ(::kill(static_cast<pid_t>(server.Cluster().ranks(1).pid()), SIGKILL), 0);
  ASSERT_TRUE(
      server.WaitForCluster([](const auto& cluster) { return cluster.state() == v1::RECOVERING; },
                            Scaled(absl::Seconds(5))));
  const auto refused = GenerateOne(server.channel(), GreedyRequest({1, 2}, 4));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace conclave::tests
