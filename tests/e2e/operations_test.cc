// What operators rely on: drains that end every stream once, workers that leave, health that tells
// ready from alive, a line for each request.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "proto/conclave/v1/generation.grpc.pb.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/operations_testing.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

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
