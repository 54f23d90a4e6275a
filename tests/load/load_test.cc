// Hundreds of streams from client processes against a service with four workers: mixed lengths, a
// fifth cancelled at a random moment, a tenth with a deadline that many cannot make, batches of
// texts to classify beside them, and a KV cache that is too small for all. What every stream saw is
// recorded and judged (checker.h); afterwards nothing may be left: no KV block, no file descriptor,
// no memory.
//
// Short by default. With CONCLAVE_FULL=1 (bazel test --config=full) 500 streams for two minutes:
//
//   bazel test --config=full --test_output=all //tests/load:load_test

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"
#include "tests/load/checker.h"
#include "tests/load/load_client.h"
#include "tests/load/workload.h"

extern char** environ;

namespace conclave::tests {
namespace {

constexpr int kClients = 4;
// Texts of one classification call: more than the queue holds.
constexpr int kTexts = 2000;
// What gRPC opens for good as it takes more threads; a descriptor left by each stream is hundreds.
constexpr int kFilesOfThreads = 8;

struct Plan {
  int streams = 200;
  int works = 24;
  absl::Duration duration = absl::Seconds(6);
  absl::Duration longest_first_token = absl::Seconds(30);
  // A quarter of the short test is hardly enough to warm up.
  int64_t memory_growth = int64_t{32} << 20;
};

bool IsFull() { return std::getenv("CONCLAVE_FULL") != nullptr; }

Plan ThePlan() {
  if (!IsFull()) return {};
  return {.streams = 500,
          .works = 64,
          .duration = absl::Minutes(2),
          .longest_first_token = absl::Seconds(60),
          .memory_growth = int64_t{8} << 20};
}

std::string Scratch(const std::string& name) {
  const char* dir = std::getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  return fmt::format("{}/{}", dir != nullptr ? dir : "/tmp", name);
}

std::vector<pid_t> Children(pid_t parent) {
  std::ifstream file(fmt::format("/proc/{0}/task/{0}/children", parent));
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/statm", pid));
  int64_t pages = 0;
  file >> pages >> pages;  // the second number
  return pages * 4096;
}

int OpenFiles(pid_t pid) {
  const std::filesystem::path path = fmt::format("/proc/{}/fd", pid);
  return static_cast<int>(std::distance(std::filesystem::directory_iterator(path), {}));
}

// This program again, as a client.
pid_t StartClient(const Server& server, const Plan& plan, int number) {
  std::vector<std::string> command = {"/proc/self/exe",
                                      "--client",
                                      server.address(),
                                      Scratch(fmt::format("history.{}", number)),
                                      std::to_string(plan.streams / kClients),
                                      std::to_string(plan.works),
                                      std::to_string(absl::ToInt64Seconds(plan.duration)),
                                      std::to_string(number)};
  std::vector<char*> argv;
  for (std::string& arg : command) argv.push_back(arg.data());
  argv.push_back(nullptr);
  pid_t pid = -1;
  return posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ) == 0 ? pid : -1;
}

// Every kind of request by itself, on a single worker that remembers nothing.
Truths ComputeTruths(int works) {
  Truths truths;
  Server server({.workers = 1, .args = {"--no-prefix-cache"}});
  EXPECT_TRUE(server.WaitServing()) << server.log();
  for (int work = 0; work < works; ++work) {
    v1::GenerateRequest request = MakeWork(work, kLongest);
    const int completions = static_cast<int>(request.n());
    const uint64_t seed = request.sampling().seed();
    request.set_n(1);
    for (int index = 0; index < completions; ++index) {
      request.mutable_sampling()->set_seed(seed + index);
      const auto tokens = GenerateOne(server.channel(), request);
      EXPECT_TRUE(tokens.ok()) << tokens.status();
      if (tokens.ok()) truths[{work, index}] = *tokens;
    }
  }
  return truths;
}

// Classifies the same texts again and again until it is told to stop.
class Classifier {
 public:
  explicit Classifier(const Server& server) : server_(server) {
    for (const Tokens& tokens : RandomPrompts(kTexts, 30)) {
      request_.add_inputs()->mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
    }
    request_.set_head("mood");
    request_.set_user("classifier");
    alone_ = Classify();
    EXPECT_EQ(alone_.results_size(), kTexts);
    thread_ = std::thread([this] { Run(); });
  }
  // The number of calls that were answered.
  int Stop() {
    stopping_ = true;
    thread_.join();
    return calls_;
  }

 private:
  v1::ClassifySequenceResponse Classify() {
    grpc::ClientContext context;
    v1::ClassifySequenceResponse response;
    const grpc::Status status = v1::ClassificationService::NewStub(server_.channel())
                                    ->ClassifySequence(&context, request_, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  void Run() {
    while (!stopping_) {
      const v1::ClassifySequenceResponse response = Classify();
      ASSERT_EQ(response.results_size(), kTexts);
      for (int i = 0; i < kTexts; ++i) {
        ASSERT_EQ(response.results(i).labels(0).logit(), alone_.results(i).labels(0).logit());
      }
      ++calls_;
    }
  }

  const Server& server_;
  v1::ClassifySequenceRequest request_;
  v1::ClassifySequenceResponse alone_;
  std::atomic<bool> stopping_ = false;
  int calls_ = 0;  // of the thread until it has been joined
  std::thread thread_;
};

// Resident memory of some processes, as it goes.
class MemoryWatch {
 public:
  void Look(const std::vector<pid_t>& processes) {
    for (pid_t pid : processes) samples_[pid].push_back(ResidentBytes(pid));
  }
  // How much more a process has in the last quarter of the time than in the second one, at most:
  // the first is for warming up.
  int64_t Growth() const {
    int64_t growth = 0;
    for (const auto& [pid, samples] : samples_) {
      const size_t quarter = samples.size() / 4;
      const auto median = [&](size_t begin) {
        std::vector<int64_t> part(samples.begin() + begin, samples.begin() + begin + quarter);
        std::sort(part.begin(), part.end());
        return part[part.size() / 2];
      };
      if (quarter == 0) continue;
      growth = std::max(growth, median(samples.size() - quarter) - median(quarter));
    }
    return growth;
  }

 private:
  std::map<pid_t, std::vector<int64_t>> samples_;
};

bool Idle(const Server& server) {
  return server.WaitForCluster(
      [](const v1::GetClusterResponse& cluster) {
        const v1::Counters& counters = cluster.counters();
        return counters.running() == 0 && counters.queued() == 0 &&
               counters.full_blocks().used() == 0 && counters.sliding_blocks().used() == 0;
      },
      Scaled(absl::Seconds(30)));
}

CheckReport Judge(const Truths& truths, const Plan& plan) {
  std::vector<Stream> streams;
  for (int client = 0; client < kClients; ++client) {
    std::ifstream file(Scratch(fmt::format("history.{}", client)));
    const auto part = ParseHistory(file);
    EXPECT_TRUE(part.ok()) << part.status();
    if (part.ok()) streams.insert(streams.end(), part->begin(), part->end());
  }
  CheckLimits limits;
  limits.deadline_slack_micros = absl::ToInt64Microseconds(Scaled(absl::Seconds(2)));
  limits.longest_first_token_micros = absl::ToInt64Microseconds(Scaled(plan.longest_first_token));
  return Check(truths, streams, limits);
}

// Waits for the clients, watching the processes of the service meanwhile.
void WaitForClients(std::vector<pid_t> clients, const std::vector<pid_t>& processes,
                    MemoryWatch& memory) {
  while (!clients.empty()) {
    int status = 0;
    const pid_t ended = ::waitpid(clients.back(), &status, WNOHANG);
    if (ended == 0) {
      memory.Look(processes);
      absl::SleepFor(absl::Milliseconds(250));  // between samples: nothing is waited for
      continue;
    }
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "a client failed";
    clients.pop_back();
  }
}

TEST(Load, StreamsFromManyClientsKeepEveryGuaranteeAndLeaveNothingBehind) {
  if (std::getenv("CONCLAVE_SANITIZER") != nullptr) {
    GTEST_SKIP()
        << "load is for the optimized build: its bounds were never measured under sanitizers";
  }
  const Plan plan = ThePlan();
  const Truths truths = ComputeTruths(plan.works);
  {
    std::ofstream file(Scratch("truths"));
    WriteTruths(truths, file);
  }
  Server server({.workers = 4,
                 .args = {"--max-running", "32", "--kv-cache-bytes", "8388608", "--prefill-chunk",
                          "64", "--head", "mood=demo/tiny_gpt_oss/head_sequence"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  Classifier classifier(server);
  std::vector<pid_t> processes = Children(server.pid());
  ASSERT_EQ(processes.size(), 5u);
  std::map<pid_t, int> files;
  for (pid_t pid : processes) files[pid] = OpenFiles(pid);

  std::vector<pid_t> clients;
  for (int i = 0; i < kClients; ++i) clients.push_back(StartClient(server, plan, i));
  MemoryWatch memory;
  WaitForClients(clients, processes, memory);
  const int classified = classifier.Stop();

  EXPECT_TRUE(Idle(server)) << server.Cluster().counters().ShortDebugString();
  const CheckReport report = Judge(truths, plan);
  const v1::Counters counters = server.Cluster().counters();
  fmt::print("{}{} calls of {} texts classified beside them\nmemory grew by {:.1f} MiB\n{}\n",
             Describe(report), classified, kTexts, static_cast<double>(memory.Growth()) / (1 << 20),
             counters.ShortDebugString());
  EXPECT_TRUE(report.violations.empty());
  EXPECT_GE(report.finished, plan.streams / 2);
  EXPECT_GT(report.cancelled, 0);
  EXPECT_GT(report.expired, 0);
  EXPECT_GT(report.cached_tokens, 0);
  EXPECT_GT(classified, 0);
  // The cache is small enough for the test to be one.
  EXPECT_GT(counters.preemptions(), 0u);
  EXPECT_GT(counters.prefix_cache().evicted_blocks(), 0u);
  // AddressSanitizer keeps what is freed.
  if (std::getenv("CONCLAVE_SANITIZER") == nullptr) {
    EXPECT_LE(memory.Growth(), plan.memory_growth);
  }
  // The connections of the clients are gone, or about to be.
  for (pid_t pid : processes) {
    const absl::Time end = absl::Now() + Scaled(absl::Seconds(10));
    const int most = files[pid] + kFilesOfThreads;
    while (OpenFiles(pid) > most && absl::Now() < end) absl::SleepFor(absl::Milliseconds(20));
    EXPECT_LE(OpenFiles(pid), most);
  }
}

int RunClient(char** arguments) {
  LoadOptions options;
  options.server = arguments[0];
  options.history = arguments[1];
  options.streams = std::atoi(arguments[2]);
  options.works = std::atoi(arguments[3]);
  options.duration = absl::Seconds(std::atoi(arguments[4]));
  options.seed = static_cast<uint32_t>(std::atoi(arguments[5]));
  return RunLoad(options);
}

}  // namespace
}  // namespace conclave::tests

int main(int argc, char** argv) {
  if (argc == 8 && std::string(argv[1]) == "--client") return conclave::tests::RunClient(argv + 2);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
