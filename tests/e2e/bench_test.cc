// `conclave bench` against a running service: what it counts is what the service did. No figure of
// speed decides.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/e2e/server.h"

namespace conclave::tests {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

CommandResult Bench(const Server& server, const std::vector<std::string>& flags) {
  std::vector<std::string> command = {BinaryPath("client/conclave"), "bench", "--server",
                                      server.address()};
  command.insert(command.end(), flags.begin(), flags.end());
  return RunCommand(command);
}

void ExpectOrdered(const Json& latency, int count) {
  EXPECT_EQ(latency["count"], count);
  EXPECT_LE(latency["p50"], latency["p90"]);
  EXPECT_LE(latency["p90"], latency["p99"]);
  EXPECT_LE(latency["p99"], latency["max"]);
  EXPECT_GT(latency["mean"], 0.0);
}

// Eight requests of 16 + 24 tokens.
void ExpectWholeRun(const Json& run) {
  EXPECT_EQ(run["completed"], 8);
  EXPECT_EQ(run["failed"], 0);
  EXPECT_EQ(run["error"], nullptr);
  EXPECT_EQ(run["prompt_tokens"], 8 * 16);
  EXPECT_EQ(run["output_tokens"], 8 * 24);
  EXPECT_GT(run["output_tokens_per_second"], 0.0);
  for (const char* latency : {"ttft_seconds", "tpot_seconds", "e2e_seconds", "prefill_seconds"}) {
    ExpectOrdered(run[latency], 8);
  }
  ExpectOrdered(run["itl_seconds"], run["itl_seconds"]["count"]);
  EXPECT_LE(run["ttft_seconds"]["mean"], run["e2e_seconds"]["mean"]);
  // The server's part of the time to the first token is within the client's.
  EXPECT_LE(
      run["queue_seconds"]["mean"].get<double>() + run["prefill_seconds"]["mean"].get<double>(),
      run["ttft_seconds"]["mean"].get<double>());
}

TEST(BenchTest, CountsWhatTheServiceDid) {
  Server server({.workers = 2, .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const CommandResult result = Bench(server, {"--concurrency", "1,4", "--requests", "8",
                                              "--input-len", "16", "--output-len", "24", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1);
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json["model"]["name"], "tiny_gpt_oss");
  EXPECT_THAT(json["model"]["kernel"].get<std::string>(), HasSubstr("cpu_mxfp4"));
  EXPECT_EQ(json["cluster"]["dp"], 2);
  ASSERT_EQ(json["cluster"]["devices"].size(), 2u);
  EXPECT_THAT(json["cluster"]["devices"][0].get<std::string>(), HasSubstr("cpu"));

  ASSERT_EQ(json["runs"].size(), 2u);
  for (const Json& run : json["runs"]) ExpectWholeRun(run);
  // One stream decodes from each first token to its last: the same tokens that have a gap.
  const Json& alone = json["runs"][0];
  EXPECT_EQ(alone["steady"]["tokens"], alone["itl_seconds"]["count"]);
  EXPECT_EQ(alone["steady"]["windows"], 8);
  EXPECT_GT(alone["prefill_tokens_per_second"], 0.0);

  // Warm-ups: one for each stream.
  EXPECT_TRUE(server.WaitForCluster(
      [](const v1::GetClusterResponse& cluster) {
        return cluster.counters().requests_finished() == 1 + 8 + 4 + 8;
      },
      Scaled(absl::Seconds(10))));
  const v1::Counters counters = server.Cluster().counters();
  EXPECT_EQ(counters.requests_failed() + counters.requests_cancelled(), 0u);
  EXPECT_EQ(counters.tokens_computed() - counters.overrun_tokens(), 21u * (16 + 24 - 1));
}

TEST(BenchTest, TheDefaultsSuitTheShippedCheckpoint) {
  Server server({.workers = 1, .args = {}});
  ASSERT_TRUE(server.WaitServing()) << server.log();
  const CommandResult result = Bench(server, {"--warmup", "0", "--requests", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("128 prompt + 128 generated tokens"));
  const CommandResult longer = Bench(server, {"--output-len", "129"});
  EXPECT_EQ(longer.exit_code, 2);
  EXPECT_THAT(longer.err, HasSubstr("257 tokens: the server's context holds 256"));
}

}  // namespace
}  // namespace conclave::tests
