// What is documented for operators is what is there: metrics that are served and move, by our own
// reading and by that of Prometheus, flags and codes.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/operations_testing.h"
#include "tests/e2e/pages.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kPrometheus[] = "/usr/bin/prometheus";

std::string Get(const std::string& address, const std::string& path,
                const httplib::Params& parameters = {}) {
  httplib::Client client("http://" + address);
  const auto result = client.Get(path, parameters, httplib::Headers());
  return result && result->status == 200 ? result->body : "";
}

std::map<std::string, std::string> ServedMetrics(const std::string& text) {
  std::map<std::string, std::string> metrics;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, type;
    words >> hash >> kind >> name >> type;
    if (hash == "#" && kind == "TYPE") metrics[name] = type;
  }
  return metrics;
}

// "conclave_tokens_total" of the sample `conclave_tokens_total{kind="generated"}`.
std::string MetricOf(const std::string& sample) {
  std::string name = sample.substr(0, sample.find('{'));
  for (const char* part : {"_bucket", "_sum", "_count"}) {
    if (name.ends_with(part)) name.resize(name.size() - std::string(part).size());
  }
  return name;
}

// Of the labels in OurLabels: "conclave_tokens_total generated".
std::vector<std::string> ValuesOf(const std::string& sample) {
  std::vector<std::string> values;
  for (const std::string& label : OurLabels()) {
    for (const char* before : {"{", ","}) {
      const std::string mark = before + label + "=\"";
      const size_t at = sample.find(mark);
      if (at == sample.npos) continue;
      const size_t begin = at + mark.size();
      values.push_back(MetricOf(sample) + " " +
                       sample.substr(begin, sample.find('"', begin) - begin));
    }
  }
  return values;
}

std::set<std::string> ServedValues(const std::string& text) {
  std::set<std::string> values;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    for (const std::string& value : ValuesOf(line)) values.insert(value);
  }
  return values;
}

// Scrapes as often as it can, and keeps every value that each sample has had.
class Scraper {
 public:
  explicit Scraper(const std::string& address)
      : address_(address), thread_([this] {
          while (!ending_.load()) Scrape();
        }) {}
  ~Scraper() {
    ending_.store(true);
    thread_.join();
  }

  // Metrics, and values of their labels, of which some sample has had more than one value.
  std::set<std::string> Moved() {
    absl::MutexLock lock(&mutex_);
    std::set<std::string> moved;
    for (const auto& [sample, values] : values_) {
      if (values.size() < 2) continue;
      moved.insert(MetricOf(sample));
      for (const std::string& value : ValuesOf(sample)) moved.insert(value);
    }
    return moved;
  }

 private:
  void Scrape() {
    std::istringstream lines(Get(address_, "/metrics"));
    absl::MutexLock lock(&mutex_);
    for (std::string line; std::getline(lines, line);) {
      const size_t space = line.rfind(' ');
      if (line.starts_with('#') || space == std::string::npos) continue;
      values_[line.substr(0, space)].insert(line.substr(space + 1));
    }
  }

  const std::string address_;
  std::atomic<bool> ending_{false};
  absl::Mutex mutex_;  // guards values_
  std::map<std::string, std::set<std::string>> values_;
  std::thread thread_;  // last: starts when the rest exists
};

// No message of any method.
void SayNonsense(const Server& server, const std::string& method) {
  std::string path = "/conclave.v1." + method;
  path[path.rfind('.')] = '/';
  grpc::GenericStub stub(server.channel());
  grpc::ClientContext context;
  const grpc::Slice slice(std::string("\xff"));
  const grpc::ByteBuffer nonsense(&slice, 1);
  grpc::ByteBuffer answer;
  grpc::Status status;
  absl::Notification done;
  stub.UnaryCall(&context, path, {}, &nonsense, &answer, [&](grpc::Status ended) {
    status = std::move(ended);
    done.Notify();
  });
  done.WaitForNotification();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << path;
}

const std::vector<std::string>& MeasuredArgs() {
  static const auto& args = *new std::vector<std::string>{
      "--metrics-listen", "127.0.0.1:0", "--kv-cache-bytes",
      "2000000",          "--head",      "mood=demo/tiny_gpt_oss/head_sequence"};
  return args;
}

// Everything a service can live through that a metric tells of.
void Exercise(const Server& server) {
  for (const std::string& method : DocumentedMethods()) SayNonsense(server, method);
  const std::vector<Tokens> prompts = RandomPrompts(24, 60);
  // More than the KV blocks hold at once, and prompts that come again.
  for (int i = 0; i < 2; ++i) {
    Streams streams(server.channel(), prompts, 100);
    for (const Streams::Result& result : streams.Join()) {
      EXPECT_TRUE(result.status.ok()) << result.status.error_message();
    }
  }
  auto stub = v1::GenerationService::NewStub(server.channel());
  v1::GenerateResponse part;
  // It stops by a token that it is going to generate: the next step has been sent by then.
  v1::GenerateRequest stops = GreedyRequest(prompts[0], 40);
  const auto all = GenerateOne(server.channel(), stops);
  ASSERT_TRUE(all.ok());
  stops.mutable_stop()->add_stop_token_ids(all->at(20));
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(GenerateOne(server.channel(), stops).ok());
  {  // refused early
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(25));
    auto reader = stub->Generate(&context, GreedyRequest(prompts[1], 240));
    while (reader->Read(&part)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  {  // cancelled
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, GreedyRequest(prompts[2], 200));
    EXPECT_TRUE(reader->Read(&part));
    context.TryCancel();
    EXPECT_FALSE(reader->Finish().ok());
  }
  {  // wrong
    grpc::ClientContext context;
    EXPECT_EQ(stub->Generate(&context, v1::GenerateRequest())->Finish().error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  v1::ClassifySequenceRequest classify;
  for (const uint32_t token : prompts[3]) {
    classify.add_inputs()->mutable_tokens()->add_ids(token);
  }
  v1::ClassifySequenceResponse labels;
  grpc::ClientContext context;
  const grpc::Status status = v1::ClassificationService::NewStub(server.channel())
                                  ->ClassifySequence(&context, classify, &labels);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(labels.results(0).timings().total_seconds(), 0);
}

TEST(MetricsTest, EveryDocumentedMetricIsServedAndMoves) {
  Server server({.workers = 2, .args = MeasuredArgs()});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  ASSERT_FALSE(server.metrics_address().empty());
  const std::string first = Get(server.metrics_address(), "/metrics");
  EXPECT_EQ(DocumentedMetrics(), ServedMetrics(first));
  EXPECT_EQ(DocumentedValues(), ServedValues(first));
  EXPECT_THAT(Get(server.metrics_address(), "/"), HasSubstr("/metrics"));
  EXPECT_EQ(Get(server.metrics_address(), "/other"), "");

  Scraper scraper(server.metrics_address());
  Exercise(server);
  v1::DrainRequest request;
  v1::DrainResponse response;
  EXPECT_TRUE(Drain(server, request, &response).ok());
  ASSERT_TRUE(
      WaitUntil([&] { return scraper.Moved().contains("conclave_draining"); }, absl::Seconds(10)));
  request.set_resume(true);
  EXPECT_TRUE(Drain(server, request, &response).ok());
  const pid_t spare = StartWorker(server, {});
  const auto spare_moved = [&] { return scraper.Moved().contains("conclave_workers spare"); };
  EXPECT_TRUE(WaitUntil(spare_moved, absl::Seconds(20)));
  ::kill(spare, SIGKILL);
  ::waitpid(spare, nullptr, 0);
  // Else it would take the place of the rank that is lost next, before anybody saw that it was.
  ASSERT_TRUE(server.WaitForLog("event=worker_lost"));
  const uint64_t epoch = server.Cluster().epoch();
  ASSERT_EQ(::kill(static_cast<pid_t>(server.Cluster().ranks(1).pid()), SIGKILL), 0);
  ASSERT_TRUE(server.WaitForCluster(
      [&](const auto& cluster) { return cluster.state() == v1::READY && cluster.epoch() > epoch; },
      Scaled(absl::Seconds(30))));
  std::set<std::string> still;
  EXPECT_TRUE(WaitUntil(
      [&] {
        still.clear();
        const std::set<std::string> moved = scraper.Moved();
        std::set<std::string> names = DocumentedValues();
        for (const auto& [name, type] : DocumentedMetrics()) names.insert(name);
        for (const std::string& name : names) {
          if (!moved.contains(name)) still.insert(name);
        }
        // What a running coordinator cannot change.
        for (const char* name : {"build_info", "workers_wanted", "queue_limit", "running_limit",
                                 "group_state FORMING", "memory_bytes total"}) {
          EXPECT_EQ(still.erase(std::string("conclave_") + name), 1u) << name;
        }
        return still.empty();
      },
      absl::Seconds(15)))
      << ::testing::PrintToString(still);
}

// Prometheus itself, which is stricter about the format than any parser of ours would be.
TEST(MetricsTest, PrometheusScrapesARunningServer) {
  if (!std::filesystem::exists(kPrometheus)) {
    GTEST_SKIP() << "no " << kPrometheus << ": tools/setup --dev installs it";
  }
  Server server({.workers = 2, .args = MeasuredArgs()});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const std::string dir = ::testing::TempDir() + "/prometheus";
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/prometheus.yml")
      << "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
      << "scrape_configs:\n- job_name: conclave\n  static_configs:\n  - targets: ['"
      << server.metrics_address() << "']\n";
  const std::string listen = "127.0.0.1:" + std::to_string(FreePort());
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int log = ::open((dir + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(log, STDERR_FILENO);
    ::execl(kPrometheus, kPrometheus, ("--config.file=" + dir + "/prometheus.yml").c_str(),
            ("--storage.tsdb.path=" + dir + "/data").c_str(),
            ("--web.listen-address=" + listen).c_str(), nullptr);
    ::_exit(127);
  }
  const auto query = [&](const std::string& expression) {
    const std::string body = Get(listen, "/api/v1/query", {{"query", expression}});
    const Json answer = Json::parse(body, nullptr, false);
    if (answer.is_discarded() || answer["data"]["result"].empty()) return -1.0;
    return std::stod(answer["data"]["result"][0]["value"][1].get<std::string>());
  };
  EXPECT_TRUE(WaitUntil([&] { return query("up{job=\"conclave\"}") == 1; }, absl::Seconds(30)));
  ASSERT_TRUE(GenerateOne(server.channel(), GreedyRequest({1, 2, 3}, 24)).ok());
  EXPECT_TRUE(WaitUntil([&] { return query("conclave_tokens_total{kind=\"generated\"}") == 24; },
                        absl::Seconds(10)));
  EXPECT_EQ(query("conclave_requests_total{method=\"GenerationService.Generate\",code=\"OK\"}"), 1);
  EXPECT_GT(query("histogram_quantile(0.5, conclave_time_between_tokens_seconds_bucket)"), 0);
  Exercise(server);
  // All that only rises has risen, in every label value that is documented.
  for (const auto& [name, type] : DocumentedMetrics()) {
    if (type == "gauge") continue;
    const std::string risen = name + (type == "histogram" ? "_sum" : "");
    EXPECT_TRUE(WaitUntil([&] { return query("sum(" + risen + ")") > 0; }, absl::Seconds(10)))
        << name;
    for (const std::string& value : DocumentedValues()) {
      if (!value.starts_with(name + " ")) continue;
      const auto has_risen = [&, word = value.substr(name.size() + 1)] {
        return std::any_of(OurLabels().begin(), OurLabels().end(), [&](const auto& label) {
          return query("sum(" + risen + "{" + label + "=\"" + word + "\"})") > 0;
        });
      };
      EXPECT_TRUE(WaitUntil(has_risen, absl::Seconds(10))) << value;
    }
  }
  for (const std::string& method : DocumentedMethods()) {
    EXPECT_EQ(query("conclave_requests_total{code=\"INVALID_ARGUMENT\",method=\"" + method + "\"}"),
              method == "GenerationService.Generate" ? 2 : 1)
        << method;
  }
  EXPECT_EQ(query("count(conclave_requests_total{code=\"OK\"})"), DocumentedMethods().size());
  // It knows every documented name, and the type of each.
  std::map<std::string, std::string> known;
  const Json metadata = Json::parse(Get(listen, "/api/v1/metadata"), nullptr, false);
  for (const auto& [name, entries] : metadata["data"].items()) {
    if (name.starts_with("conclave_")) known[name] = entries[0]["type"];
  }
  EXPECT_EQ(known, DocumentedMetrics());
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

// "--model" of "  --model DIR REQUIRED   folder of ...".
std::set<std::string> FlagsOfHelp(const std::vector<std::string>& command) {
  const CommandResult help = RunCommand(command);
  EXPECT_EQ(help.exit_code, 0) << help.err;
  std::set<std::string> flags;
  std::istringstream lines(help.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("  --")) flags.insert(line.substr(2, line.find_first_of(" \n", 2) - 2));
  }
  EXPECT_GT(flags.size(), 10u) << help.out;
  return flags;
}

TEST(PagesTest, EveryFlagIsDocumentedAndEveryDocumentedFlagExists) {
  std::set<std::string> known;
  known.merge(FlagsOfHelp({BinaryPath("coordinator/conclave-coordinator"), "--help"}));
  known.merge(FlagsOfHelp({BinaryPath("worker/conclave-worker"), "--help"}));
  known.merge(FlagsOfHelp({BinaryPath("client/conclave"), "serve", "--help"}));
  EXPECT_EQ(DocumentedFlags(), known);
}

TEST(PagesTest, BothPagesListEveryCodeThatIsAnswered) {
  const std::set<std::string> codes = {
      "ABORTED",         "CANCELLED",        "DEADLINE_EXCEEDED", "FAILED_PRECONDITION",
      "INTERNAL",        "INVALID_ARGUMENT", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
      "UNAUTHENTICATED", "UNAVAILABLE",      "UNIMPLEMENTED"};
  EXPECT_EQ(DocumentedCodes(kOperationsPage), codes);
  EXPECT_EQ(DocumentedCodes(kApiPage), codes);
}

}  // namespace
}  // namespace conclave::tests
