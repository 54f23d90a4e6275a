// `conclave bench` against a server whose answers the test chooses: exit codes, output, and what is
// sent.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "client/exit_code.h"
#include "client/fake_server.h"
#include "client/process.h"
#include "client/process_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;
using Writer = grpc::ServerWriter<v1::GenerateResponse>;

// An error is one line.
void ExpectError(const CommandResult& result, int code, const std::string& text) {
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_THAT(result.err, StartsWith("conclave bench: "));
  EXPECT_THAT(result.err, HasSubstr(text));
}

class BenchCliTest : public testing::Test {
 protected:
  BenchCliTest() {
    v1::GetModelResponse& model = server_.answers.model;
    model.set_name("tiny");
    model.set_can_generate(true);
    model.set_vocab_size(100);
    model.set_context_length(64);
    model.add_eos_token_ids(90);
    model.mutable_limits()->set_max_running(2);
    server_.answers.cluster.set_dp(1);
    server_.answers.generate = [this](grpc::ServerContext& context,
                                      const v1::GenerateRequest& request, Writer& writer) {
      const int index = Keep(request);
      return answer_ ? answer_(context, writer, index) : Answer(request, writer);
    };
  }

  int Keep(const v1::GenerateRequest& request) {
    absl::MutexLock lock(&mutex_);
    sent_.push_back(request);
    return static_cast<int>(sent_.size()) - 1;
  }

  static grpc::Status Answer(const v1::GenerateRequest& request, Writer& writer) {
    v1::GenerateResponse part;
    part.add_tokens(1);
    for (uint32_t i = 0; i < request.stop().max_tokens(); ++i) writer.Write(part);
    part.clear_tokens();
    part.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
    part.mutable_finish()->mutable_timings()->set_first_token_seconds(0.5);
    writer.Write(part);
    return grpc::Status::OK;
  }

  CommandResult Bench(std::vector<std::string> flags) {
    flags.insert(flags.begin(),
                 {"bench", "--server", server_.address(), "--input-len", "8", "--output-len", "4"});
    return RunConclave(flags);
  }

  size_t sent() {
    absl::MutexLock lock(&mutex_);
    return sent_.size();
  }

  // In place of Answer, for tests that need another; `index` counts requests.
  std::function<grpc::Status(grpc::ServerContext&, Writer&, int index)> answer_;
  absl::Mutex mutex_;  // guards sent_
  std::vector<v1::GenerateRequest> sent_;
  FakeServer server_;  // last: its threads use the rest
};

TEST_F(BenchCliTest, JsonHasARunForEachConcurrency) {
  const CommandResult result = Bench({"--concurrency", "1,2", "--requests", "6", "--warmup", "3",
                                      "--seed", "5", "--temperature", "0", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1);
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["model"]["name"], "tiny");
  EXPECT_EQ(json["cluster"]["dp"], 1);
  EXPECT_EQ(json["settings"]["seed"], 5);
  EXPECT_EQ(json["interrupted"], false);
  ASSERT_EQ(json["runs"].size(), 2u);
  for (int run = 0; run < 2; ++run) {
    const Json& measured = json["runs"][run];
    EXPECT_EQ(measured["concurrency"], run + 1);
    EXPECT_EQ(measured["warmup"], 3);
    EXPECT_EQ(measured["completed"], 6);
    EXPECT_EQ(measured["prompt_tokens"], 48);
    EXPECT_EQ(measured["output_tokens"], 24);
    EXPECT_GT(measured["output_tokens_per_second"], 0);
    EXPECT_EQ(measured["ttft_seconds"]["count"], 6);
    EXPECT_EQ(measured["itl_seconds"]["count"], 18);
    EXPECT_LE(measured["e2e_seconds"]["p50"], measured["e2e_seconds"]["max"]);
  }
  EXPECT_EQ(json["runs"][0]["prefill_tokens_per_second"], 16.0);  // 8 in the server's 0.5 s
  EXPECT_EQ(json["runs"][1]["prefill_tokens_per_second"], nullptr);
}

TEST_F(BenchCliTest, RequestsAreExactAndNeverRepeat) {
  ASSERT_EQ(Bench({"--concurrency", "2", "--temperature", "0.5"}).code, kExitOk);
  ASSERT_EQ(sent(), 2u + 8u);  // one warm-up and four requests for each stream
  std::vector<std::string> prompts;
  for (const v1::GenerateRequest& request : sent_) {
    EXPECT_EQ(request.prompt().tokens().ids_size(), 8);
    for (const uint32_t id : request.prompt().tokens().ids()) EXPECT_LT(id, 90u);
    EXPECT_EQ(request.stop().max_tokens(), 4u);
    EXPECT_TRUE(request.stop().ignore_eos());
    EXPECT_EQ(request.sampling().temperature(), 0.5f);
    prompts.push_back(request.prompt().SerializeAsString());
  }
  std::sort(prompts.begin(), prompts.end());
  EXPECT_EQ(std::unique(prompts.begin(), prompts.end()), prompts.end());
}

TEST_F(BenchCliTest, TablesAreForPeople) {
  const CommandResult result = Bench({"--requests", "2", "--warmup", "0"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, HasSubstr("output tok/s"));
  EXPECT_THAT(result.out, HasSubstr("between tokens (ITL)"));
  EXPECT_EQ(sent(), 2u);
}

TEST_F(BenchCliTest, DurationEndsARun) {
  const CommandResult result = Bench({"--duration", "0.05", "--warmup", "0", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["settings"]["duration_seconds"], 0.05);
  EXPECT_EQ(json["settings"]["requests"], nullptr);
  EXPECT_EQ(json["runs"][0]["completed"], sent());
}

TEST_F(BenchCliTest, WrongUsageExits2) {
  ExpectError(Bench({"--concurrency", "1,x"}), kExitUsage, "'x'");
  ExpectError(Bench({"--concurrency", ""}), kExitUsage, "--concurrency holds ''");
  ExpectError(Bench({"--concurrency", "4,"}), kExitUsage, "--concurrency holds ''");
  ExpectError(Bench({"--concurrency", "0"}), kExitUsage, "'0'");
  ExpectError(Bench({"--concurrency", "9999"}), kExitUsage, "4096");
  ExpectError(Bench({"--requests", "4", "--duration", "1"}), kExitUsage, "not both");
  ExpectError(Bench({"--concurrency", "1,8", "--requests", "4"}), kExitUsage, "8 streams");
  ExpectError(Bench({"--requests", "0"}), kExitUsage, "--requests");
  ExpectError(RunConclave({"bench", "--input-len", "0"}), kExitUsage, "--input-len");
  ExpectError(Bench({"--duration", "-1"}), kExitUsage, "--duration");
  EXPECT_EQ(sent(), 0u);
}

TEST_F(BenchCliTest, LengthsBeyondTheContextExit2WithTheNumbers) {
  const auto bench = [this](const char* output) {
    return RunConclave({"bench", "--server", server_.address(), "--input-len", "60", "--output-len",
                        output, "--warmup", "0"});
  };
  ExpectError(bench("5"), kExitUsage,
              "--input-len 60 and --output-len 5 are 65 tokens: the server's context holds 64");
  EXPECT_EQ(sent(), 0u);
  EXPECT_EQ(bench("4").code, kExitOk);
}

TEST_F(BenchCliTest, AServerThatCannotGenerateIsSaidSo) {
  server_.answers.model.set_can_generate(false);
  ExpectError(Bench({}), kExitError, "FAILED_PRECONDITION: the server's model tiny has no");
}

TEST_F(BenchCliTest, AServerThatIsNotThereIsSaidSo) {
  ExpectError(RunConclave({"bench", "--server", "127.0.0.1:1"}), kExitError,
              "no server answers at 127.0.0.1:1");
}

TEST_F(BenchCliTest, MoreStreamsThanTheServerRunsAreNoted) {
  const CommandResult result = Bench({"--concurrency", "3", "--json"});
  EXPECT_EQ(result.code, kExitOk);
  EXPECT_THAT(result.err, HasSubstr("the server runs 2 requests at once"));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

TEST_F(BenchCliTest, AFailedRequestExits1AfterWhatWasMeasured) {
  answer_ = [](grpc::ServerContext&, Writer& writer, int index) {
    if (index == 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "rank 2 was lost");
    v1::GenerateRequest request;
    request.mutable_stop()->set_max_tokens(4);
    return Answer(request, writer);
  };
  const CommandResult result = Bench({"--concurrency", "1,2", "--warmup", "0", "--json"});
  EXPECT_EQ(result.code, kExitError);
  EXPECT_EQ(result.err,
            "conclave bench: UNAVAILABLE: 1 of 3 requests with 1 streams failed, the first with: "
            "rank 2 was lost\n");
  const Json json = Json::parse(result.out);
  ASSERT_EQ(json["runs"].size(), 1u);  // none after the one that failed
  EXPECT_EQ(json["runs"][0]["completed"], 2);
  EXPECT_EQ(json["runs"][0]["failed"], 1);
  EXPECT_EQ(json["runs"][0]["error"], "UNAVAILABLE: rank 2 was lost");
}

TEST_F(BenchCliTest, AFailedWarmUpExits1WithoutOutput) {
  answer_ = [](grpc::ServerContext&, Writer&, int) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "sampling.temperature is 200");
  };
  ExpectError(Bench({"--temperature", "200", "--json"}), kExitError,
              "INVALID_ARGUMENT: in the warm-up with 1 streams: sampling.temperature is 200");
}

TEST_F(BenchCliTest, CtrlCPrintsWhatWasMeasuredAndExits130) {
  std::atomic<bool> hanging = false;
  answer_ = [&hanging](grpc::ServerContext& context, Writer& writer, int index) {
    v1::GenerateRequest request;
    request.mutable_stop()->set_max_tokens(4);
    if (index < 3) return Answer(request, writer);
    hanging = true;
    EXPECT_TRUE(WaitUntil([&] { return context.IsCancelled(); }));
    return grpc::Status::CANCELLED;
  };
  const auto process =
      Spawn({.argv = {ConclaveBinary(), "bench", "--server", server_.address(), "--output-len", "4",
                      "--input-len", "8", "--duration", "3600", "--json"},
             .log_file = ""});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(WaitUntil([&] { return hanging.load(); }));
  ASSERT_EQ(kill(process->pid, SIGINT), 0);
  int status = 0;
  const bool ended =
      WaitUntil([&] { return waitpid(process->pid, &status, WNOHANG) == process->pid; });
  if (!ended) kill(process->pid, SIGKILL);
  ASSERT_TRUE(ended);
  ASSERT_TRUE(WIFEXITED(status)) << DescribeExit(status);
  EXPECT_EQ(WEXITSTATUS(status), kExitInterrupted);
  std::string out(8192, '\0');
  const ssize_t size = read(process->stdout_fd, out.data(), out.size());
  ASSERT_GT(size, 0);
  const Json json = Json::parse(out.substr(0, static_cast<size_t>(size)));
  EXPECT_EQ(json["interrupted"], true);
  EXPECT_EQ(json["runs"][0]["completed"], 2);  // of three answers one was the warm-up's
  EXPECT_EQ(json["runs"][0]["cancelled"], 1);
  EXPECT_EQ(json["runs"][0]["failed"], 0);
  close(process->stdout_fd);
  close(process->stderr_fd);
}

}  // namespace
}  // namespace conclave::client
