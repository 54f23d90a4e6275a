// What operators rely on: metrics that are documented and move, drains that end every stream once,
// workers that leave, health that tells ready from alive, a line for each request.

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "proto/conclave/v1/classification.grpc.pb.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kDocs[] = "docs/operations.md";
constexpr char kApiDocs[] = "docs/api.md";
// What calls end with besides OK.
constexpr std::array<const char*, 11> kCodes = {
    "ABORTED",         "CANCELLED",        "DEADLINE_EXCEEDED", "FAILED_PRECONDITION",
    "INTERNAL",        "INVALID_ARGUMENT", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED", "UNAVAILABLE",      "UNIMPLEMENTED"};
constexpr char kPrometheus[] = "/usr/bin/prometheus";

bool WaitUntil(const std::function<bool()>& condition, absl::Duration limit) {
  const absl::Time end = absl::Now() + Scaled(limit);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

std::string Get(const std::string& address, const std::string& path,
                const httplib::Params& parameters = {}) {
  httplib::Client client("http://" + address);
  const auto result = client.Get(path, parameters, httplib::Headers());
  return result && result->status == 200 ? result->body : "";
}

// name -> type, as docs/operations.md lists them.
std::map<std::string, std::string> DocumentedMetrics() {
  std::map<std::string, std::string> metrics;
  std::ifstream docs(kDocs);
  for (std::string line; std::getline(docs, line);) {
    const std::string mark = "| `conclave_";
    if (!line.starts_with(mark)) continue;
    const size_t end = line.find('`', 3);
    const size_t type = line.find("| ", end) + 2;
    metrics[line.substr(3, end - 3)] = line.substr(type, line.find(' ', type) - type);
  }
  return metrics;
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

// What stands in backticks in `text`.
std::vector<std::string> Quoted(const std::string& text) {
  std::vector<std::string> quoted;
  for (size_t begin = text.find('`'); begin != text.npos; begin = text.find('`', begin)) {
    const size_t end = std::min(text.find('`', begin + 1), text.size());
    quoted.push_back(text.substr(begin + 1, end - begin - 1));
    begin = std::min(end + 1, text.size());
  }
  return quoted;
}

// Of a row of a table.
std::vector<std::string> Cells(const std::string& row) {
  std::vector<std::string> cells(1);
  for (size_t i = 1; i < row.size(); ++i) {
    if (row[i] == '|' && row[i - 1] != '\\') {
      cells.emplace_back();
    } else {
      cells.back() += row[i];
    }
  }
  return cells;
}

// Labels whose values are ours to choose, all of them documented.
const std::set<std::string>& OurLabels() {
  static const auto& labels =
      *new std::set<std::string>{"state", "role", "outcome", "kind", "stage"};
  return labels;
}

// "conclave_tokens_total generated": metrics and the values that docs/operations.md lists for their
// labels.
std::set<std::string> DocumentedValues() {
  std::set<std::string> values;
  std::ifstream docs(kDocs);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `conclave_")) continue;
    const std::vector<std::string> cells = Cells(line);
    const auto labels = Quoted(cells[2]);
    const auto ours = [](const std::string& label) { return OurLabels().contains(label); };
    if (std::none_of(labels.begin(), labels.end(), ours)) continue;
    for (const std::string& value : Quoted(cells[3])) {
      values.insert(Quoted(cells[0])[0] + " " + value);
    }
  }
  return values;
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

// "GenerationService.Chat", as docs/api.md lists them.
std::set<std::string> DocumentedMethods() {
  std::set<std::string> methods;
  std::ifstream docs(kApiDocs);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `") || line.find("Service.") > line.find('|', 1)) continue;
    std::string service;  // said once for the methods of a row
    for (const std::string& name : Quoted(Cells(line)[0])) {
      const size_t dot = name.find('.');
      if (dot != name.npos) service = name.substr(0, dot + 1);
      methods.insert(dot != name.npos ? name : service + name);
    }
  }
  return methods;
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

// Greedy streams, one thread each; each keeps how it ended.
class Streams {
 public:
  Streams(std::shared_ptr<grpc::Channel> channel, const std::vector<Tokens>& prompts,
          int max_tokens)
      : results_(prompts.size()) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      threads_.emplace_back([this, channel, prompt = prompts[i], max_tokens, i] {
        grpc::ClientContext context;
        auto reader = v1::GenerationService::NewStub(channel)->Generate(
            &context, GreedyRequest(prompt, max_tokens));
        v1::GenerateResponse part;
        while (reader->Read(&part)) {
          EXPECT_FALSE(results_[i].finished) << "a message after the last one";
          results_[i].tokens.insert(results_[i].tokens.end(), part.tokens().begin(),
                                    part.tokens().end());
          results_[i].finished = part.has_finish();
          started_.fetch_add(results_[i].started ? 0 : 1);
          results_[i].started = true;
        }
        results_[i].status = reader->Finish();
      });
    }
  }
  ~Streams() { Join(); }

  struct Result {
    Tokens tokens;
    bool started = false;
    bool finished = false;
    grpc::Status status;
  };
  // Until so many have had a token.
  bool WaitStarted(int count) {
    return WaitUntil([&] { return started_.load() >= count; }, absl::Seconds(30));
  }
  const std::vector<Result>& Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return results_;
  }

 private:
  std::vector<Result> results_;
  std::atomic<int> started_{0};
  std::vector<std::thread> threads_;
};

grpc::Status Drain(const Server& server, const v1::DrainRequest& request,
                   v1::DrainResponse* response) {
  grpc::ClientContext context;
  return v1::ClusterService::NewStub(server.channel())->Drain(&context, request, response);
}

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

// One that serve does not know of.
pid_t StartWorker(const Server& server, const std::vector<std::string>& more) {
  std::vector<std::string> command = {BinaryPath("worker/conclave-worker"),
                                      "--coordinator",
                                      server.internal_address(),
                                      "--advertise-address",
                                      "127.0.0.1",
                                      "--interface",
                                      "lo",
                                      "--threads",
                                      "1"};
  command.insert(command.end(), more.begin(), more.end());
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  return pid;
}

TEST(OperationsTest, EveryDocumentedMetricIsServedAndMoves) {
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

int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  socklen_t size = sizeof(address);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
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

TEST(OperationsTest, EveryFlagIsDocumentedAndEveryDocumentedFlagExists) {
  std::set<std::string> documented;
  std::ifstream docs(kDocs);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| `--")) continue;
    for (const std::string& flag : Quoted(Cells(line)[0])) {
      documented.insert(flag.substr(0, flag.find(' ')));
    }
  }
  std::set<std::string> known;
  known.merge(FlagsOfHelp({BinaryPath("coordinator/conclave-coordinator"), "--help"}));
  known.merge(FlagsOfHelp({BinaryPath("worker/conclave-worker"), "--help"}));
  known.merge(FlagsOfHelp({BinaryPath("client/conclave"), "serve", "--help"}));
  EXPECT_EQ(documented, known);
}

// "INVALID_ARGUMENT", of the rows of a page that begin with codes.
std::set<std::string> DocumentedCodes(const std::string& path) {
  std::set<std::string> codes;
  std::ifstream docs(path);
  for (std::string line; std::getline(docs, line);) {
    if (!line.starts_with("| ")) continue;
    std::istringstream names(Cells(line)[0]);
    for (std::string name; names >> name;) {
      if (name.ends_with(',')) name.pop_back();
      if (std::find(kCodes.begin(), kCodes.end(), name) != kCodes.end()) codes.insert(name);
    }
  }
  return codes;
}

TEST(OperationsTest, BothPagesListEveryCodeThatIsAnswered) {
  const std::set<std::string> codes(kCodes.begin(), kCodes.end());
  EXPECT_EQ(DocumentedCodes(kDocs), codes);
  EXPECT_EQ(DocumentedCodes(kApiDocs), codes);
}

// Prometheus itself, which is stricter about the format than any parser of ours would be.
TEST(OperationsTest, PrometheusScrapesARunningServer) {
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
      const std::string label = type == "histogram" || name.ends_with("seconds_total") ? "stage"
                                : name == "conclave_sequences_total"                   ? "outcome"
                                                                                       : "kind";
      const std::string one =
          "sum(" + risen + "{" + label + "=\"" + value.substr(name.size() + 1) + "\"})";
      EXPECT_TRUE(WaitUntil([&] { return query(one) > 0; }, absl::Seconds(10))) << one;
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

TEST(OperationsTest, ADrainUnderLoadEndsEveryStreamOnceAndTheProcessWithZero) {
  Server server({.workers = 2, .args = {"--max-running", "8"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const std::vector<Tokens> prompts = RandomPrompts(32, 20);
  std::vector<Tokens> truth;
  for (const Tokens& prompt : prompts) {
    const auto tokens = GenerateOne(server.channel(), GreedyRequest(prompt, 60));
    ASSERT_TRUE(tokens.ok());
    truth.push_back(*tokens);
  }
  Streams streams(server.channel(), prompts, 60);  // half of them wait in the queue
  ASSERT_TRUE(streams.WaitStarted(4));
  const pid_t coordinator = server.CoordinatorPid();
  const int status = server.Stop(SIGTERM);
  const auto& results = streams.Join();
  for (size_t i = 0; i < prompts.size(); ++i) {
    // A stream that came too late was refused; every other one is whole.
    if (results[i].tokens.empty() && !results[i].status.ok()) {
      EXPECT_EQ(results[i].status.error_code(), grpc::StatusCode::UNAVAILABLE);
      continue;
    }
    EXPECT_TRUE(results[i].status.ok()) << results[i].status.error_message();
    EXPECT_TRUE(results[i].finished);
    EXPECT_EQ(results[i].tokens, truth[i]);
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(coordinator)));
  EXPECT_THAT(server.log(), HasSubstr("event=drained"));
}

// Streams, a batch and a chat that take seconds, and what comes of them when a drain cuts them.
class CallsUnderWay {
 public:
  explicit CallsUnderWay(const Server& server)
      : prompts_(RandomPrompts(kStreams, 20)), channel_(server.channel()) {
    const auto truth = GenerateTogether(channel_, prompts_, kTokens);
    EXPECT_TRUE(truth.ok()) << truth.status();
    if (truth.ok()) truth_ = *truth;
  }

  // Until all of them are computed; false when that does not happen. The chat, which is the
  // shortest, comes last.
  bool Start(const Server& server) {
    batch_ = std::thread(
        [this] { batch_status_ = GenerateTogether(channel_, prompts_, kTokens).status(); });
    streams_ = std::make_unique<Streams>(channel_, prompts_, kTokens);
    const bool others = streams_->WaitStarted(kStreams);
    chat_ = std::thread([this] { Chat(); });
    return others && chat_started_.WaitForNotificationWithTimeout(Scaled(absl::Seconds(20))) &&
           server.Cluster().counters().running() == 2 * kStreams + 1;
  }

  // Each has ended well with the true output, or UNAVAILABLE after a prefix of it. How many were
  // cut.
  int ExpectCut() {
    int cut = 0;
    const std::vector<Streams::Result>& results = streams_->Join();
    for (size_t i = 0; i < results.size(); ++i) {
      const Streams::Result& result = results[i];
      EXPECT_EQ(result.finished, result.status.ok());
      EXPECT_LE(result.tokens.size(), truth_[i].size());
      EXPECT_TRUE(std::equal(result.tokens.begin(), result.tokens.end(), truth_[i].begin()));
      if (result.status.ok()) {
        EXPECT_EQ(result.tokens.size(), truth_[i].size());
        continue;
      }
      EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
      EXPECT_LT(result.tokens.size(), truth_[i].size());
      ++cut;
    }
    batch_.join();
    chat_.join();
    EXPECT_TRUE(absl::IsUnavailable(batch_status_)) << batch_status_;
    EXPECT_EQ(chat_status_.error_code(), grpc::StatusCode::UNAVAILABLE)
        << chat_status_.error_message();
    EXPECT_FALSE(chat_finished_);
    EXPECT_GT(cut, 0);
    return cut + 2;
  }

 private:
  static constexpr int kStreams = 24;
  static constexpr int kTokens = 230;
  static constexpr int kChatTokens = 100;

  void Chat() {
    v1::ChatRequest request;
    v1::ChatMessage* message = request.mutable_conversation()->add_messages();
    message->set_role(v1::ChatMessage::USER);
    message->set_content("Hi");
    request.mutable_conversation()->set_model_identity("");
    request.mutable_conversation()->set_knowledge_cutoff("");
    request.mutable_stop()->set_min_tokens(kChatTokens);
    request.mutable_stop()->set_max_tokens(kChatTokens);
    grpc::ClientContext context;
    const auto reader = v1::GenerationService::NewStub(channel_)->Chat(&context, request);
    v1::ChatResponse part;
    while (reader->Read(&part)) {
      if (!chat_started_.HasBeenNotified()) chat_started_.Notify();
      chat_finished_ = part.has_finish();
    }
    chat_status_ = reader->Finish();
  }

  const std::vector<Tokens> prompts_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::vector<Tokens> truth_;
  std::unique_ptr<Streams> streams_;
  std::thread batch_;
  std::thread chat_;
  absl::Status batch_status_;
  grpc::Status chat_status_;
  absl::Notification chat_started_;
  bool chat_finished_ = false;
};

TEST(OperationsTest, TheLimitOfADrainCutsWhatIsLeft) {
  Server server({.workers = 1, .args = {"--drain-limit", "0.05"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  CallsUnderWay calls(server);
  ASSERT_TRUE(calls.Start(server));
  v1::DrainResponse response;
  ASSERT_TRUE(Drain(server, v1::DrainRequest(), &response).ok());
  EXPECT_TRUE(response.draining());
  EXPECT_TRUE(WaitUntil([&] { return !server.Healthy(); }, absl::Seconds(1)));
  EXPECT_EQ(response.cut(), static_cast<uint32_t>(calls.ExpectCut()));
  v1::DrainRequest resume;
  resume.set_resume(true);
  ASSERT_TRUE(Drain(server, resume, &response).ok());
  EXPECT_TRUE(WaitUntil([&] { return server.Healthy(); }, absl::Seconds(10)));
  EXPECT_TRUE(GenerateOne(server.channel(), GreedyRequest({1, 2, 3}, 4)).ok());
}

TEST(OperationsTest, AfterSigtermTheLimitCutsWhatIsLeftAndTheProcessEndsWithZero) {
  Server server({.workers = 1, .args = {"--drain-limit", "0.05"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  CallsUnderWay calls(server);
  ASSERT_TRUE(calls.Start(server));
  const int status = server.Stop(SIGTERM);
  const int cut = calls.ExpectCut();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_THAT(server.log(), HasSubstr("cut=" + std::to_string(cut)));
}

// A spare that was started by hand takes the place of the worker that is told to stop.
TEST(OperationsTest, AWorkerThatLeavesCostsNoStream) {
  Server server({.workers = 2, .args = {"--log-format", "json"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const std::vector<Tokens> prompts = RandomPrompts(16, 20);
  std::vector<Tokens> truth;
  for (const Tokens& prompt : prompts) {
    const auto tokens = GenerateOne(server.channel(), GreedyRequest(prompt, 200));
    ASSERT_TRUE(tokens.ok());
    truth.push_back(*tokens);
  }
  const pid_t spare = StartWorker(server, {});
  ASSERT_TRUE(server.WaitForLog("\"registered\":3"));
  Streams streams(server.channel(), prompts, 200);
  ASSERT_TRUE(streams.WaitStarted(8));
  ASSERT_EQ(::kill(static_cast<pid_t>(server.Cluster().ranks(1).pid()), SIGTERM), 0);
  const auto& results = streams.Join();
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_TRUE(results[i].status.ok()) << results[i].status.error_message();
    EXPECT_EQ(results[i].tokens, truth[i]);
  }
  EXPECT_EQ(server.Cluster().epoch(), 2u);
  EXPECT_THAT(server.log(), HasSubstr("ended: exit code 0"));
  ::kill(spare, SIGTERM);
  int status = 0;
  EXPECT_TRUE(
      WaitUntil([&] { return ::waitpid(spare, &status, WNOHANG) == spare; }, absl::Seconds(20)));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

bool Says(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  grpc::ClientContext context;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
  return status.ok() && response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

TEST(OperationsTest, StoppedWorkersTurnReadinessAndLeaveLivenessAlone) {
  Server server({.workers = 2, .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const std::string listen = "127.0.0.1:" + std::to_string(FreePort());
  const pid_t other = StartWorker(server, {"--health-listen", listen});
  const auto other_worker = grpc::CreateChannel(listen, grpc::InsecureChannelCredentials());
  ASSERT_TRUE(server.WaitForLog("registered=3"));
  ASSERT_TRUE(WaitUntil([&] { return Says(other_worker, "liveness"); }, absl::Seconds(10)));
  // Both ranks: the other worker would take the place of one before anybody saw that it was gone.
  const v1::GetClusterResponse cluster = server.Cluster();
  const auto signal_ranks = [&cluster](int signal) {
    for (const v1::Rank& rank : cluster.ranks()) {
      ASSERT_EQ(::kill(static_cast<pid_t>(rank.pid()), signal), 0);
    }
  };
  signal_ranks(SIGSTOP);
  int dead = 0;  // looks at which somebody was not alive
  const auto becomes = [&](bool ready) {
    dead += Says(server.channel(), "liveness") && Says(other_worker, "liveness") ? 0 : 1;
    return Says(server.channel(), "readiness") == ready;
  };
  // As docs/operations.md promises.
  EXPECT_TRUE(WaitUntil([&] { return becomes(false); }, absl::Seconds(5)));
  signal_ranks(SIGCONT);
  EXPECT_TRUE(WaitUntil([&] { return becomes(true); }, absl::Seconds(30)));
  EXPECT_EQ(dead, 0);
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
}

TEST(OperationsTest, InJsonEveryRequestHasALineWithItsIdAndTimes) {
  Server server({.workers = 1, .args = {"--log-format", "json"}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "shop-42/7");
  context.AddMetadata("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  auto reader = v1::GenerationService::NewStub(server.channel())
                    ->Generate(&context, GreedyRequest({1, 2, 3}, 5));
  v1::GenerateResponse part;
  while (reader->Read(&part)) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_TRUE(server.WaitForLog("shop-42/7"));
  bool found = false;
  std::istringstream lines(server.log());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("conclave serve: ")) continue;
    const Json entry = Json::parse(line, nullptr, false);
    ASSERT_TRUE(entry.is_object()) << line;
    for (const char* member : {"ts", "level", "process", "pid", "event"}) {
      EXPECT_TRUE(entry.contains(member)) << line;
    }
    if (entry["event"] != "request" || entry["request_id"] != "shop-42/7") continue;
    found = true;
    EXPECT_EQ(entry["method"], "GenerationService.Generate");
    EXPECT_EQ(entry["code"], "OK");
    EXPECT_EQ(entry["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    EXPECT_EQ(entry["parent_span_id"], "00f067aa0ba902b7");
    EXPECT_EQ(entry["completion_tokens"], 5);
    EXPECT_GT(entry["first_token_seconds"], 0);
    EXPECT_GE(entry["seconds"], entry["first_token_seconds"]);
  }
  EXPECT_TRUE(found) << server.log();
}

}  // namespace
}  // namespace conclave::tests
