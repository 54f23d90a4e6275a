// More than it can take: requests past the queue's bound, messages past the limit, readers that
// never read. What is refused is refused at once, what is taken is answered right, and the service
// goes on within its memory.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "proto/conclave/v1/model.grpc.pb.h"
#include "tests/e2e/golden.h"
#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;

constexpr int kMaxQueued = 64;
constexpr int kMaxRunning = 16;

// A connection of its own.
std::shared_ptr<grpc::Channel> Connect(const Server& server) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments);
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  int64_t pages = 0;
  file >> pages >> pages;  // the second number
  return pages * 4096;
}

// Counts calls down to their end.
class Countdown {
 public:
  explicit Countdown(int count) : left_(count) {}
  void Done() {
    absl::MutexLock lock(&mutex_);
    --left_;
  }
  bool Wait(absl::Duration limit) {
    absl::MutexLock lock(&mutex_);
    const auto none = [this] { return left_ == 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&none), limit);
  }

 private:
  absl::Mutex mutex_;  // guards left_
  int left_;
};

// One stream on gRPC's threads, no thread of its own. It reads only if told to.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request, bool reads,
         Countdown& countdown)
      : request_(request), countdown_(countdown) {
    stub.async()->Generate(&context_, &request_, this);
    if (reads) StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    tokens_.insert(tokens_.end(), response_.tokens().begin(), response_.tokens().end());
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    status_ = status;
    countdown_.Done();
  }
  void Cancel() { context_.TryCancel(); }

  // Of a call that has ended.
  const grpc::Status& status() const { return status_; }
  const Tokens& tokens() const { return tokens_; }

 private:
  const v1::GenerateRequest request_;
  Countdown& countdown_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  Tokens tokens_;
  grpc::Status status_;
};

class OverloadTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new Server({.workers = 1,
                          .args = {"--max-queued", std::to_string(kMaxQueued), "--max-running",
                                   std::to_string(kMaxRunning)}});
    ASSERT_TRUE(server_->WaitServing()) << server_->log();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }

  // Nothing waits, nothing runs, no KV block is held.
  static bool Idle() {
    return server_->WaitForCluster(
        [](const v1::GetClusterResponse& cluster) {
          const v1::Counters& counters = cluster.counters();
          return counters.running() == 0 && counters.queued() == 0 &&
                 counters.full_blocks().used() == 0;
        },
        Scaled(absl::Seconds(30)));
  }
  static void ExpectStillRight() {
    const GoldenCase golden = LoadGoldens()[0];
    const auto tokens = GenerateOne(server_->channel(), GreedyRequest(golden.prompt, 24));
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(*tokens, golden.greedy);
  }

  static Server* server_;
};

Server* OverloadTest::server_ = nullptr;

TEST_F(OverloadTest, TenThousandRequestsAtOnceAreAnsweredRightOrRefused) {
  constexpr int kRequests = 10'000;
  constexpr int kConnections = 4;
  constexpr int kTokens = 4;
  const std::vector<Tokens> prompts = RandomPrompts(16, 12);
  std::vector<Tokens> alone;
  for (const Tokens& prompt : prompts) {
    const auto tokens = GenerateOne(server_->channel(), GreedyRequest(prompt, kTokens));
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    alone.push_back(*tokens);
  }
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs;
  for (int i = 0; i < kConnections; ++i) {
    stubs.push_back(v1::GenerationService::NewStub(Connect(*server_)));
  }
  Countdown countdown(kRequests);
  std::vector<std::unique_ptr<Stream>> streams;
  const absl::Time start = absl::Now();
  for (int i = 0; i < kRequests; ++i) {
    streams.push_back(std::make_unique<Stream>(*stubs[i % kConnections],
                                               GreedyRequest(prompts[i % prompts.size()], kTokens),
                                               true, countdown));
  }
  ASSERT_TRUE(countdown.Wait(Scaled(absl::Seconds(60))));
  RecordProperty("milliseconds", static_cast<int>(absl::ToInt64Milliseconds(absl::Now() - start)));

  int answered = 0;
  int refused = 0;
  for (int i = 0; i < kRequests; ++i) {
    if (streams[i]->status().ok()) {
      ++answered;
      ASSERT_EQ(streams[i]->tokens(), alone[i % alone.size()]) << "request " << i;
      continue;
    }
    ++refused;
    ASSERT_EQ(streams[i]->status().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << streams[i]->status().error_message();
    ASSERT_THAT(streams[i]->status().error_message(), HasSubstr("64 requests are queued"));
    ASSERT_TRUE(streams[i]->tokens().empty());
  }
  RecordProperty("answered", answered);
  EXPECT_GE(answered, kMaxQueued);
  EXPECT_GE(refused, 1);
  EXPECT_TRUE(Idle());
  ExpectStillRight();
}

TEST_F(OverloadTest, AMessageOfOneHundredMegabytesIsRefusedAndTheServiceGoesOn) {
  const pid_t coordinator = server_->CoordinatorPid();
  v1::GenerateRequest request = GreedyRequest({}, 1);
  request.mutable_prompt()->set_text(std::string(100 << 20, 'x'));
  const auto tokens = GenerateOne(server_->channel(), request);
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kResourceExhausted) << tokens.status();
  EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("67108864"));
  ExpectStillRight();
  EXPECT_EQ(server_->CoordinatorPid(), coordinator);
}

// It fits the limit of messages, not the context, and nobody else waits for it to be tokenized.
TEST_F(OverloadTest, AFiftyMegabytePromptIsRefusedWithItsSize) {
  v1::GenerateRequest request = GreedyRequest({}, 1);
  request.mutable_prompt()->set_text(std::string(50 << 20, 'x'));
  const absl::Time start = absl::Now();
  const auto tokens = GenerateOne(server_->channel(), request);
  EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << tokens.status();
  EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("prompt.text has 52428800 bytes"));
  EXPECT_LE(absl::Now() - start, Scaled(absl::Seconds(5)));
  ExpectStillRight();
}

TEST_F(OverloadTest, ReadersThatNeverReadBlockNobodyAndTakeLittleMemory) {
  constexpr int kStreams = kMaxQueued - 8;  // should none have been admitted, others still fit
  constexpr int kTokens = 200;
  // Nearly a kilobyte for each token: together far more than a connection's window.
  v1::GenerateRequest request = GreedyRequest({1, 2, 3}, kTokens);
  request.set_logprobs(20);
  const pid_t coordinator = server_->CoordinatorPid();
  ExpectStillRight();
  const int64_t before = ResidentBytes(coordinator);
  ASSERT_GT(before, 0);

  const auto channel = Connect(*server_);
  const auto stub = v1::GenerationService::NewStub(channel);
  Countdown countdown(kStreams);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(std::make_unique<Stream>(*stub, request, false, countdown));
  }
  // Other connections are served meanwhile, and the engine ends what nobody reads.
  ExpectStillRight();
  EXPECT_TRUE(Idle());
  ExpectStillRight();
  EXPECT_LE(ResidentBytes(coordinator) - before, int64_t{64} << 20);
  for (const auto& stream : streams) stream->Cancel();
  EXPECT_TRUE(countdown.Wait(Scaled(absl::Seconds(30))));
  ExpectStillRight();
}

// As the above, but the text of one request is the work.
TEST_F(OverloadTest, AMegabyteOfOneCharacterIsTokenizedInLessThanASecond) {
  for (const std::string unit : {"a", " ", "!", "\n", "\xF0\x9F\x91\xA9"}) {
    v1::TokenizeRequest request;
    while (request.text().size() < (1 << 20)) *request.mutable_text() += unit;
    v1::TokenizeResponse response;
    grpc::ClientContext context;
    const absl::Time start = absl::Now();
    const grpc::Status status =
        v1::ModelService::NewStub(server_->channel())->Tokenize(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_LE(absl::Now() - start, Scaled(absl::Seconds(1))) << "'" << unit << "'";
    EXPECT_GT(response.ids_size(), 0);
  }
}

}  // namespace
}  // namespace conclave::tests
