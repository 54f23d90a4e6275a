// Hundreds of streams from client processes against a service with four workers: mixed lengths, a
// fifth cancelled at a random moment, a tenth with a deadline that many cannot make, batches of
// texts to classify beside them, and a KV cache that is too small for all. What every stream saw is
// recorded and judged (checker.h) by what the same requests give alone, without a prefix cache and
// with whole prompts; afterwards nothing may be left: no KV block, no file descriptor, no memory.
//
// Short by default. With CONCLAVE_FULL=1 (bazel test --config=full) 500 streams for two minutes:
//
//   bazel test --config=full --test_output=all //tests/load:load_test

#include <fmt/format.h>
#include <gmock/gmock.h>
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
constexpr int kGroups = 4;  // one worker each

// Requests that begin at once on an idle service. However they are spread, some group gets as many
// as kCrowdInGroup, and those want kCrowdInGroup * kCrowdBlocks blocks before the first has ended.
constexpr int kCrowdInGroup = 16;
constexpr int kCrowd = kGroups * (kCrowdInGroup - 1) + 1;
constexpr int kCrowdPrompt = 8;
constexpr int kCrowdTokens = 112;
constexpr int kCrowdBlocks = (kCrowdPrompt + kCrowdTokens) / 16;  // whole ones

// What gRPC opens for good as it takes more threads; a descriptor left by each stream is hundreds.
constexpr int kFilesOfThreads = 8;

struct Plan {
  int streams = 200;
  int works = 24;
  int texts = 1200;  // of one classification call: more than the queue holds
  absl::Duration duration = absl::Seconds(6);
  absl::Duration longest_first_token = absl::Seconds(30);
  absl::Duration longest_classification = absl::Seconds(60);
  // A quarter of the short test is hardly enough to warm up.
  int64_t memory_growth = int64_t{32} << 20;
};

bool IsFull() { return std::getenv("CONCLAVE_FULL") != nullptr; }

Plan ThePlan() {
  if (!IsFull()) return {};
  return {.streams = 500,
          .works = 64,
          .texts = 2000,
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

v1::GenerateBatchResponse GenerateCrowd(const Server& server) {
  v1::GenerateBatchRequest batch;
  for (uint32_t i = 0; i < kCrowd; ++i) {
    Tokens prompt(kCrowdPrompt, 7);
    prompt[0] = i;
    v1::GenerateRequest request = GreedyRequest(prompt, kCrowdTokens);
    request.mutable_sampling()->set_temperature(0.9F);
    request.mutable_sampling()->set_seed(i);
    *batch.add_requests() = std::move(request);
  }
  v1::GenerateBatchResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      v1::GenerationService::NewStub(server.channel())->GenerateBatch(&context, batch, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// How long it took.
double RunCrowd(const Server& server, const v1::GenerateBatchResponse& truth) {
  const absl::Time start = absl::Now();
  const v1::GenerateBatchResponse crowd = GenerateCrowd(server);
  const double seconds = SecondsSince(start);
  EXPECT_EQ(crowd.results_size(), kCrowd);
  for (int i = 0; i < std::min(crowd.results_size(), truth.results_size()); ++i) {
    EXPECT_THAT(crowd.results(i).tokens(), testing::ElementsAreArray(truth.results(i).tokens()));
  }
  return seconds;
}

// Every kind of request by itself, on a single worker that remembers nothing and has room for all.
struct Alone {
  Truths truths;
  v1::GenerateBatchResponse crowd;
};
Alone ComputeAlone(int works) {
  Alone alone;
  Server server({.workers = 1, .args = {"--no-prefix-cache"}});
  EXPECT_TRUE(server.WaitServing()) << server.log();
  alone.crowd = GenerateCrowd(server);
  EXPECT_EQ(server.Cluster().counters().preemptions(), 0u);
  for (int work = 0; work < works; ++work) {
    v1::GenerateRequest request = MakeWork(work, kLongest);
    const int completions = static_cast<int>(request.n());
    const uint64_t seed = request.sampling().seed();
    request.set_n(1);
    for (int index = 0; index < completions; ++index) {
      request.mutable_sampling()->set_seed(seed + index);
      const auto tokens = GenerateOne(server.channel(), request);
      EXPECT_TRUE(tokens.ok()) << tokens.status();
      if (tokens.ok()) alone.truths[{work, index}] = *tokens;
    }
  }
  return alone;
}

// Classifies the same texts once, and then again and again from Start to Stop.
class Classifier {
 public:
  Classifier(const Server& server, int texts) : server_(server), texts_(texts) {
    for (const Tokens& tokens : RandomPrompts(texts, 30)) {
      request_.add_inputs()->mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
    }
    request_.set_head("mood");
    request_.set_user("classifier");
    const absl::Time start = absl::Now();
    alone_ = Classify();
    seconds_alone_ = SecondsSince(start);
    EXPECT_EQ(alone_.results_size(), texts);
  }
  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  // How long each call took.
  std::vector<double> Stop() {
    stopping_ = true;
    thread_.join();
    return seconds_;
  }
  double seconds_alone() const { return seconds_alone_; }

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
      const absl::Time start = absl::Now();
      const v1::ClassifySequenceResponse response = Classify();
      ASSERT_EQ(response.results_size(), texts_);
      for (int i = 0; i < texts_; ++i) {
        ASSERT_EQ(response.results(i).labels(0).logit(), alone_.results(i).labels(0).logit());
      }
      seconds_.push_back(SecondsSince(start));
    }
  }

  const Server& server_;
  const int texts_;
  v1::ClassifySequenceRequest request_;
  v1::ClassifySequenceResponse alone_;
  double seconds_alone_ = 0;
  std::atomic<bool> stopping_ = false;
  std::vector<double> seconds_;  // of the thread until it has been joined
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
  const Alone alone = ComputeAlone(plan.works);
  {
    std::ofstream file(Scratch("truths"));
    WriteTruths(alone.truths, file);
  }
  Server server({.workers = kGroups,
                 .args = {"--max-running", "32", "--kv-cache-bytes", "4194304", "--prefill-chunk",
                          "64", "--head", "mood=demo/tiny_gpt_oss/head_sequence"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  // Blocks run out for certain, whatever the machine: there are so few.
  const uint32_t blocks = server.Cluster().counters().full_blocks().total() / kGroups;
  ASSERT_GT(kCrowdInGroup * kCrowdBlocks, static_cast<int>(blocks) * 3 / 2);
  const double crowd_alone = RunCrowd(server, alone.crowd);
  EXPECT_GT(server.Cluster().counters().preemptions(), 0u);

  Classifier classifier(server, plan.texts);
  classifier.Start();
  const double crowd_beside = RunCrowd(server, alone.crowd);
  std::vector<pid_t> processes = Children(server.pid());
  ASSERT_EQ(processes.size(), kGroups + 1u);
  std::map<pid_t, int> files;
  for (pid_t pid : processes) files[pid] = OpenFiles(pid);

  std::vector<pid_t> clients;
  for (int i = 0; i < kClients; ++i) clients.push_back(StartClient(server, plan, i));
  MemoryWatch memory;
  WaitForClients(clients, processes, memory);
  const std::vector<double> classified = classifier.Stop();

  EXPECT_TRUE(Idle(server)) << server.Cluster().counters().ShortDebugString();
  const CheckReport report = Judge(alone.truths, plan);
  const v1::Counters counters = server.Cluster().counters();
  ASSERT_FALSE(classified.empty());
  const double longest_call = *std::max_element(classified.begin(), classified.end());
  fmt::print(
      "{}{} texts took {:.2f} s alone; {} times beside generations, {:.2f} s at most\n"
      "{} generations of {} tokens took {:.2f} s alone, {:.2f} s beside texts\n"
      "memory grew by {:.1f} MiB\n{}\n",
      Describe(report), plan.texts, classifier.seconds_alone(), classified.size(), longest_call,
      kCrowd, kCrowdTokens, crowd_alone, crowd_beside,
      static_cast<double>(memory.Growth()) / (1 << 20), counters.ShortDebugString());
  EXPECT_TRUE(report.violations.empty());
  EXPECT_GE(report.finished, plan.streams / 2);
  EXPECT_GT(report.cancelled, 0);
  EXPECT_GT(report.expired, 0);
  EXPECT_GT(report.cached_tokens, 0);
  EXPECT_GT(counters.prefix_cache().evicted_blocks(), 0u);
  EXPECT_LE(longest_call, absl::ToDoubleSeconds(Scaled(plan.longest_classification)));
  EXPECT_LE(memory.Growth(), plan.memory_growth);
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
