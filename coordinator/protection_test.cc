#include "coordinator/protection.h"

#include <cstdlib>
#include <fstream>
#include <memory>

#include "base/clock.h"
#include "base/retry_delay.h"
#include "base/status_macros.h"
#include "coordinator/engine_testing.h"
#include "coordinator/limited_engine.h"
#include "coordinator/refusal_log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kGenerate[] = "/conclave.v1.GenerationService/Generate";
constexpr char kAlice[] = "Bearer alice-0123456789";
constexpr char kBob[] = "Bearer bob-0123456789abc";

std::string Write(const std::string& text) {
  const char* dir = std::getenv("TEST_TMPDIR");
  const std::string path = std::string(dir != nullptr ? dir : "/tmp") + "/keys";
  std::ofstream(path) << text;
  return path;
}

std::string Refusal(const std::string& text) {
  return std::string(ParseApiKeys(text, "keys").status().message());
}

class ApiKeysTest : public ::testing::Test {
 protected:
  std::shared_ptr<ApiKeys> Open(const std::string& text) {
    auto keys = ApiKeys::Open(Write(text), clock_, wall_);
    EXPECT_TRUE(keys.ok()) << keys.status();
    return *std::move(keys);
  }
  // The new text is looked for once a second.
  void Rewrite(const std::string& text) {
    Write(text);
    clock_.Advance(absl::Seconds(2));
  }

  base::FakeClock clock_;
  base::FakeClock wall_;
};

TEST_F(ApiKeysTest, OnlyAKeyOfTheFileMayCall) {
  const auto keys = Open("# who\nalice alice-0123456789\n\nbob\tbob-0123456789abc\n");
  EXPECT_TRUE(keys->Check(kGenerate, kAlice).ok());
  EXPECT_TRUE(keys->Check(kGenerate, kBob).ok());
  for (const char* header : {"", "Bearer ", "Bearer alice-0123456788", "Basic alice-0123456789",
                             "alice-0123456789", "Bearer alice", "Bearer sha256:00"}) {
    EXPECT_TRUE(absl::IsUnauthenticated(keys->Check(kGenerate, header))) << header;
  }
}

TEST_F(ApiKeysTest, AKeyMayStandThereAsItsDigest) {
  // Of "alice-0123456789", by sha256sum.
  std::string hex;
  for (const uint8_t byte : base::Sha256("alice-0123456789")) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  const auto keys = Open("alice sha256:" + hex);
  EXPECT_TRUE(keys->Check(kGenerate, kAlice).ok());
  EXPECT_FALSE(keys->Check(kGenerate, "Bearer sha256:" + hex).ok());
}

TEST_F(ApiKeysTest, AKeyEndsWhenItExpires) {
  wall_.Advance(absl::FromUnixSeconds(1'800'000'000) - wall_.Now());
  const auto keys = Open("alice alice-0123456789 expires=2027-01-15T08:00:10Z\n");  // ten seconds
  clock_.Advance(absl::Hours(1));
  EXPECT_TRUE(keys->Check(kGenerate, kAlice).ok()) << "dates are the wall clock's to say";
  wall_.Advance(absl::Seconds(10));
  const absl::Status expired = keys->Check(kGenerate, kAlice);
  EXPECT_TRUE(absl::IsUnauthenticated(expired));
  EXPECT_THAT(std::string(expired.message()), HasSubstr("expired"));
}

TEST_F(ApiKeysTest, WhatChangesTheClusterTakesAnAdmin) {
  const auto keys = Open("alice alice-0123456789\nbob bob-0123456789abc admin\n");
  constexpr char kRead[] = "/conclave.v1.ClusterService/GetCluster";
  for (const char* method :
       {"/conclave.v1.ClusterService/Rebalance", "/conclave.v1.ClusterService/SomethingNew",
        "/conclave.v1.SomeNewService/Read", "/conclave.v1.ModelServiceNew/Read", ""}) {
    EXPECT_TRUE(absl::IsPermissionDenied(keys->Check(method, kAlice))) << method;
    EXPECT_TRUE(keys->Check(method, kBob).ok()) << method;
  }
  for (const char* method : {kRead, kGenerate, "/conclave.v1.ClassificationService/ScoreLabels",
                             "/conclave.v1.ModelService/GetModel", "/grpc.health.v1.Health/Watch",
                             "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}) {
    EXPECT_TRUE(keys->Check(method, kAlice).ok()) << method;
  }
}

TEST_F(ApiKeysTest, ANewFileCountsAndABrokenOneDoesNot) {
  const auto keys = Open("alice alice-0123456789\n");
  EXPECT_FALSE(keys->Check(kGenerate, kBob).ok());
  Rewrite("bob bob-0123456789abc\n");
  EXPECT_TRUE(keys->Check(kGenerate, kBob).ok());
  EXPECT_FALSE(keys->Check(kGenerate, kAlice).ok());
  Rewrite("bob\n");
  EXPECT_TRUE(keys->Check(kGenerate, kBob).ok());
  Rewrite("");
  EXPECT_TRUE(keys->Check(kGenerate, kBob).ok());
}

TEST_F(ApiKeysTest, AFileIsRefusedByItsLineAndNotByWhatItSays) {
  EXPECT_THAT(Refusal("# none\n"), HasSubstr("no key"));
  EXPECT_THAT(Refusal("\nalice\n"), HasSubstr("keys:2:"));
  EXPECT_THAT(Refusal("alice short-secret"), HasSubstr("16 to 1024 characters"));
  EXPECT_THAT(Refusal("alice short-secret"), Not(HasSubstr("short-secret")));
  EXPECT_THAT(Refusal("al/ice alice-0123456789"), HasSubstr("a name is"));
  EXPECT_THAT(Refusal("a alice-0123456789\na bob-0123456789abc"), HasSubstr("the name was there"));
  EXPECT_THAT(Refusal("a alice-0123456789\nb alice-0123456789"), HasSubstr("the key was there"));
  EXPECT_THAT(Refusal("a sha256:12"), HasSubstr("64 hexadecimal"));
  EXPECT_THAT(Refusal("a alice-0123456789 expires=soon"), HasSubstr("expires="));
  EXPECT_THAT(Refusal("a alice-0123456789 max-requests=0"), HasSubstr("max-requests="));
  EXPECT_THAT(Refusal("a alice-0123456789 tokens-per-minute=x"), HasSubstr("tokens-per-minute="));
  EXPECT_THAT(Refusal("a alice-0123456789 root"), HasSubstr("an option is"));
}

// --- Refusals in the log ---

TEST(RefusalLogTest, AFewLinesAtOnceThenOneASecondWithTheNumberLeftOut) {
  RefusalLog log("public");
  const absl::Time start = absl::FromUnixSeconds(1'800'000'000);
  const absl::Status why = absl::UnauthenticatedError("an API key is required");
  EXPECT_EQ(log.Line(kGenerate, why, start),
            "event=call_refused port=public method=\"/conclave.v1.GenerationService/Generate\" "
            "code=UNAUTHENTICATED error=\"an API key is required\"");
  int lines = 1;
  for (int i = 0; i < 1000; ++i) lines += log.Line(kGenerate, why, start).has_value() ? 1 : 0;
  EXPECT_EQ(lines, 10);
  const auto next = log.Line("/a\n\"b", why, start + absl::Seconds(1));
  ASSERT_TRUE(next.has_value());
  EXPECT_THAT(*next, HasSubstr("method=\"/a \\\"b\""));
  EXPECT_THAT(*next, HasSubstr(" left_out=991"));
  EXPECT_FALSE(log.Line(kGenerate, why, start + absl::Seconds(1)).has_value());
}

// --- Limits ---

// Takes requests, or refuses them when it is told to.
class TakingEngine final : public Engine {
 public:
  absl::StatusOr<std::vector<RequestId>> SubmitForks(std::vector<Request>& requests) override {
    RETURN_IF_ERROR(refusal);
    for (Request& request : requests) taken.push_back(std::move(request));
    return std::vector<RequestId>(requests.size(), 1);
  }
  void Cancel(RequestId) override {}
  void Drain(const v1::DrainRequest&, DrainDone) override {}
  CallAccount& calls() override { return calls_; }
  void Rebalance(const v1::RebalanceRequest&, RebalanceDone) override {}
  v1::GetClusterResponse Snapshot() override { return {}; }
  bool Serving() override { return true; }

  absl::Status refusal;
  std::vector<Request> taken;

 private:
  CallAccount calls_;
};

class LimitedEngineTest : public ApiKeysTest {
 protected:
  absl::Status Submit(const std::shared_ptr<ApiKeyAccount>& account, int count, int tokens = 4) {
    std::vector<Request> requests(static_cast<size_t>(count));
    for (Request& request : requests) {
      request.tokens.resize(static_cast<size_t>(tokens));
      request.account = account;
      request.sink = sink_ = std::make_shared<RecordingSink>();
    }
    const absl::Status status = limited_.SubmitForks(requests).status();
    EXPECT_TRUE(status.ok() || requests.back().sink == sink_) << "not as it was";
    return status;
  }
  void End(size_t i, int completion_tokens = 0) {
    Outcome outcome;
    outcome.completion_tokens = completion_tokens;
    engine_.taken[i].sink->OnEnd(outcome);
  }

  TakingEngine engine_;
  LimitedEngine limited_{engine_};
  std::shared_ptr<RecordingSink> sink_;
};

TEST_F(LimitedEngineTest, AKeyHasNoMoreRequestsOpenThanItMay) {
  const auto keys = Open("alice alice-0123456789 max-requests=2\nbob bob-0123456789abc\n");
  const auto alice = keys->Account(kAlice);
  EXPECT_TRUE(Submit(alice, 2).ok());
  const absl::Status full = Submit(alice, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_TRUE(base::RetryDelay(full).has_value());
  EXPECT_THAT(std::string(full.message()), HasSubstr("'alice' has 2 requests open"));
  EXPECT_TRUE(Submit(keys->Account(kBob), 5).ok()) << "others have nothing to do with it";
  End(0);
  EXPECT_TRUE(Submit(alice, 1).ok());
  EXPECT_FALSE(Submit(alice, 1).ok());
}

TEST_F(LimitedEngineTest, MoreThanAKeyMayEverHaveOpenIsNotToldToComeAgain) {
  const auto keys = Open("alice alice-0123456789 max-requests=8\n");
  const absl::Status never = Submit(keys->Account(kAlice), 9);
  EXPECT_TRUE(absl::IsResourceExhausted(never));
  EXPECT_FALSE(base::RetryDelay(never).has_value());
  EXPECT_THAT(std::string(never.message()), HasSubstr("9 completions, inputs or labels"));
  EXPECT_TRUE(Submit(keys->Account(kAlice), 8).ok());
}

TEST_F(LimitedEngineTest, WhatTheEngineRefusesDoesNotCount) {
  const auto keys = Open("alice alice-0123456789 max-requests=1 tokens-per-minute=10\n");
  engine_.refusal = absl::UnavailableError("not ready");
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(absl::IsUnavailable(Submit(keys->Account(kAlice), 1, /*tokens=*/10)));
  }
  engine_.refusal = absl::OkStatus();
  EXPECT_TRUE(Submit(keys->Account(kAlice), 1, /*tokens=*/10).ok());
}

TEST_F(LimitedEngineTest, TokensComeBackOverTheMinute) {
  const auto keys = Open("alice alice-0123456789 tokens-per-minute=60\n");
  const auto alice = keys->Account(kAlice);
  EXPECT_TRUE(Submit(alice, 1, /*tokens=*/40).ok());
  EXPECT_TRUE(Submit(alice, 1, /*tokens=*/10).ok()) << "20 are left";
  End(0, /*completion_tokens=*/39);  // overdrawn by 29
  const absl::Status spent = Submit(alice, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(spent));
  EXPECT_EQ(*base::RetryDelay(spent), absl::Seconds(30));
  clock_.Advance(absl::Seconds(29));
  EXPECT_FALSE(Submit(alice, 1).ok());
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Submit(alice, 1).ok());
}

TEST_F(LimitedEngineTest, OpenRequestsStayCountedWhenTheFileChanges) {
  const auto keys = Open("alice alice-0123456789 max-requests=1\n");
  EXPECT_TRUE(Submit(keys->Account(kAlice), 1).ok());
  Rewrite("alice bob-0123456789abc max-requests=2\n");
  EXPECT_TRUE(Submit(keys->Account(kBob), 1).ok());
  EXPECT_FALSE(Submit(keys->Account(kBob), 1).ok());
}

// --- Flags ---

std::string FlagProblem(const ProtectionOptions& options, const std::string& internal_listen) {
  return std::string(CheckProtection(options, internal_listen).message());
}

TEST(ProtectionTest, AWorkersPortThatOthersReachNeedsASecretOrCertificates) {
  ProtectionOptions options;
  for (const char* loopback : {"127.0.0.1:7001", "localhost:7001", "[::1]:7001"}) {
    EXPECT_EQ(FlagProblem(options, loopback), "");
  }
  for (const char* open : {"0.0.0.0:7001", "[::]:7001", "10.0.0.1:7001", "127.example.com:1"}) {
    EXPECT_THAT(FlagProblem(options, open), HasSubstr("--internal-secret FILE")) << open;
  }
  options.worker_tls = {.cert = "c", .key = "k"};  // anybody may still join
  EXPECT_THAT(FlagProblem(options, "0.0.0.0:7001"), HasSubstr("--internal-tls-cert, -key and -ca"));
  options.worker_tls.ca = "a";
  EXPECT_EQ(FlagProblem(options, "0.0.0.0:7001"), "");
  EXPECT_EQ(FlagProblem({.worker_secret = "s"}, "0.0.0.0:7001"), "");
  EXPECT_EQ(FlagProblem({.worker_insecure = true}, "0.0.0.0:7001"), "");
}

TEST(ProtectionTest, HalfOfWhatTlsNeedsIsRefused) {
  EXPECT_THAT(FlagProblem({.tls = {.cert = "c"}}, "127.0.0.1:1"), HasSubstr("--tls-key"));
  EXPECT_THAT(FlagProblem({.tls = {.ca = "a"}}, "127.0.0.1:1"), HasSubstr("--tls-client-ca"));
  EXPECT_THAT(FlagProblem({.worker_tls = {.key = "k"}}, "127.0.0.1:1"),
              HasSubstr("--internal-tls-cert"));
}

std::string LogOfPublicPort(const ProtectionOptions& options, const std::string& listen) {
  CallAccount calls;
  testing::internal::CaptureStderr();
  (void)PublicCredentials(options, listen, nullptr, calls);
  return testing::internal::GetCapturedStderr();
}

TEST(ProtectionTest, APortThatIsOpenToEverybodyIsSaidToBe) {
  EXPECT_THAT(LogOfPublicPort({}, "0.0.0.0:50051"), HasSubstr("event=public_port_open"));
  EXPECT_EQ(LogOfPublicPort({}, "127.0.0.1:50051"), "");
  EXPECT_EQ(LogOfPublicPort({.tls = {.ca = "clients.pem"}}, "0.0.0.0:50051"), "");
}

}  // namespace
}  // namespace conclave::coordinator
