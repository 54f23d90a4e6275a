#include "client/bench_report.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

absl::Time At(int64_t millis) { return absl::FromUnixMillis(1'000'000 + millis); }

// Two requests of 100 + 3 tokens, one after the other, each over 500 ms: 200 ms of prefill, tokens
// 100 ms apart.
RunStatistics TwoRequests(int streams) {
  RunStatistics run({.streams = streams, .input_len = 100, .output_len = 3}, At(0));
  for (const int64_t start : {0, 500}) {
    RequestTrace request(At(start));
    for (const int64_t at : {250, 350, 450}) run.OnTokens(request, At(start + at), 1);
    run.OnEnd(request, At(start + 500), RequestEnd::kCompleted,
              ServerTimes{absl::Milliseconds(10), absl::Milliseconds(200)});
  }
  return run;
}

BenchReport ReportOf(RunStatistics run) {
  BenchReport report;
  report.settings.server = "127.0.0.1:1";
  report.settings.input_len = 100;
  report.settings.output_len = 3;
  report.settings.seed = 9;
  report.model.set_name("tiny");
  report.model.mutable_experts()->set_kernel("cpu_mxfp4_avx2");
  report.runs.push_back({std::move(run), /*warmup=*/4, absl::OkStatus()});
  return report;
}

TEST(BenchReportTest, RatesAndLatenciesOfARun) {
  const Json run = BenchJson(ReportOf(TwoRequests(1)))["runs"][0];
  EXPECT_EQ(run["concurrency"], 1);
  EXPECT_EQ(run["warmup"], 4);
  EXPECT_EQ(run["completed"], 2);
  EXPECT_EQ(run["failed"], 0);
  EXPECT_EQ(run["cancelled"], 0);
  EXPECT_EQ(run["error"], nullptr);
  EXPECT_EQ(run["seconds"], 1.0);
  EXPECT_EQ(run["prompt_tokens"], 200);
  EXPECT_EQ(run["output_tokens"], 6);
  EXPECT_EQ(run["requests_per_second"], 2.0);
  EXPECT_EQ(run["output_tokens_per_second"], 6.0);
  EXPECT_EQ(run["total_tokens_per_second"], 206.0);
  EXPECT_EQ(run["steady"], Json::parse(R"({"tokens_per_second": 10.0, "tokens": 4,
                                           "seconds": 0.4, "windows": 2})"));
  EXPECT_EQ(run["prefill_tokens_per_second"], 500.0);
  EXPECT_EQ(run["ttft_seconds"], Json::parse(R"({"count": 2, "mean": 0.25, "p50": 0.25,
                                                 "p90": 0.25, "p99": 0.25, "max": 0.25})"));
  EXPECT_EQ(run["itl_seconds"]["count"], 4);
  EXPECT_EQ(run["itl_seconds"]["p50"], 0.1);
  EXPECT_EQ(run["tpot_seconds"]["p50"], 0.1);
  EXPECT_EQ(run["e2e_seconds"]["max"], 0.5);
  EXPECT_EQ(run["queue_seconds"]["mean"], 0.01);
  EXPECT_EQ(run["prefill_seconds"]["mean"], 0.2);
}

TEST(BenchReportTest, WhatWasNotMeasuredIsNull) {
  // Two streams that never decode together.
  const Json two = BenchJson(ReportOf(TwoRequests(2)))["runs"][0];
  EXPECT_EQ(two["steady"], nullptr);
  EXPECT_EQ(two["prefill_tokens_per_second"], nullptr);
  EXPECT_TRUE(two["prefill_seconds"].is_object());

  const RunStatistics empty({.streams = 1, .input_len = 1, .output_len = 1}, At(0));
  const Json none = BenchJson(ReportOf(empty))["runs"][0];
  for (const char* field : {"requests_per_second", "output_tokens_per_second", "ttft_seconds",
                            "itl_seconds", "tpot_seconds", "e2e_seconds", "queue_seconds",
                            "prefill_seconds", "prefill_tokens_per_second", "steady"}) {
    EXPECT_EQ(none[field], nullptr) << field;
  }
}

TEST(BenchReportTest, SettingsAndServerAreInTheRecord) {
  BenchReport report = ReportOf(TwoRequests(1));
  report.settings.requests = 2;
  report.runs[0].error = absl::UnavailableError("rank 2 was lost");
  Json json = BenchJson(report);
  EXPECT_EQ(json["server"], "127.0.0.1:1");
  EXPECT_EQ(json["model"]["name"], "tiny");
  EXPECT_EQ(json["model"]["kernel"], "cpu_mxfp4_avx2");
  EXPECT_EQ(json["cluster"], nullptr);
  EXPECT_EQ(json["settings"]["input_len"], 100);
  EXPECT_EQ(json["settings"]["requests"], 2);
  EXPECT_EQ(json["settings"]["duration_seconds"], nullptr);
  EXPECT_EQ(json["settings"]["seed"], 9);
  EXPECT_EQ(json["interrupted"], false);
  EXPECT_EQ(json["runs"][0]["error"], "UNAVAILABLE: rank 2 was lost");

  v1::GetClusterResponse& cluster = report.cluster.emplace();
  cluster.set_dp(2);
  cluster.set_tp(1);
  cluster.add_ranks()->set_device("cuda: a");
  cluster.add_ranks()->set_device("cuda: b");
  json = BenchJson(report);
  EXPECT_EQ(json["cluster"],
            Json::parse(R"({"dp": 2, "tp": 1, "devices": ["cuda: a", "cuda: b"]})"));
}

TEST(BenchReportTest, TablesHaveARowForEachRun) {
  BenchReport report = ReportOf(TwoRequests(1));
  report.runs.push_back({TwoRequests(2), /*warmup=*/0, absl::OkStatus()});
  const std::string text = BenchText(report);
  EXPECT_THAT(text, HasSubstr("cpu_mxfp4_avx2"));
  EXPECT_THAT(text, HasSubstr("streams  requests  failed  seconds"));
  EXPECT_THAT(text, HasSubstr("\n      1         2       0     1.00"));
  EXPECT_THAT(text, HasSubstr("\n      2         2       0     1.00"));
  EXPECT_THAT(text, HasSubstr("first token (TTFT)"));
  EXPECT_THAT(text, HasSubstr("250.00"));
}

TEST(BenchReportTest, ALatencyWithoutValuesHasNoRow) {
  RunStatistics run({.streams = 1, .input_len = 1, .output_len = 1}, At(0));
  RequestTrace request(At(0));
  run.OnTokens(request, At(10), 1);
  run.OnEnd(request, At(20), RequestEnd::kCompleted);
  const std::string text = BenchText(ReportOf(run));
  EXPECT_THAT(text, HasSubstr("(TTFT)"));
  EXPECT_THAT(text, Not(HasSubstr("(ITL)")));
}

}  // namespace
}  // namespace conclave::client
