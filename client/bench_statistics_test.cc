#include "client/bench_statistics.h"

#include "gtest/gtest.h"

namespace conclave::client {
namespace {

absl::Time At(int64_t millis) { return absl::FromUnixMillis(1'000'000 + millis); }
absl::Duration Millis(int64_t millis) { return absl::Milliseconds(millis); }

TEST(DistributionTest, PercentilesAreNearestRanks) {
  Distribution d;
  for (int i = 10; i >= 1; --i) d.Add(Millis(i));
  EXPECT_EQ(d.Percentile(0), Millis(1));
  EXPECT_EQ(d.Percentile(10), Millis(1));
  EXPECT_EQ(d.Percentile(11), Millis(2));
  EXPECT_EQ(d.Percentile(50), Millis(5));
  EXPECT_EQ(d.Percentile(51), Millis(6));
  EXPECT_EQ(d.Percentile(90), Millis(9));
  EXPECT_EQ(d.Percentile(99), Millis(10));
  EXPECT_EQ(d.Percentile(100), Millis(10));
  EXPECT_EQ(d.Mean(), absl::Microseconds(5500));
}

TEST(DistributionTest, ACountIsThatManyValues) {
  Distribution d;
  d.Add(Millis(1), 98);
  d.Add(Millis(7));
  d.Add(Millis(9));
  EXPECT_EQ(d.count(), 100);
  EXPECT_EQ(d.Percentile(98), Millis(1));
  EXPECT_EQ(d.Percentile(99), Millis(7));
  EXPECT_EQ(d.Percentile(100), Millis(9));
  EXPECT_EQ(d.Mean(), absl::Microseconds(1140));
}

TEST(DistributionTest, ValuesAreRoundedToMicrosecondsButNotTheMean) {
  Distribution d;
  d.Add(absl::Nanoseconds(1499));
  d.Add(absl::Nanoseconds(1501));
  EXPECT_EQ(d.Percentile(50), absl::Microseconds(1));
  EXPECT_EQ(d.Percentile(100), absl::Microseconds(2));
  EXPECT_EQ(d.Mean(), absl::Nanoseconds(1500));
}

TEST(DistributionTest, NoValueIsZero) {
  EXPECT_EQ(Distribution().count(), 0);
  EXPECT_EQ(Distribution().Percentile(50), absl::ZeroDuration());
  EXPECT_EQ(Distribution().Mean(), absl::ZeroDuration());
}

TEST(SteadyWindowTest, CountsTokensAfterItsOpeningUpToItsClosing) {
  SteadyWindow window(2);
  window.OnFirstTokens(At(0));
  window.OnTokens(5);  // the other stream has no token yet
  window.OnFirstTokens(At(10));
  window.OnTokens(1);
  window.OnTokens(2);
  window.OnEnd(At(40));
  window.OnTokens(7);  // one stream is left
  window.OnEnd(At(90));
  EXPECT_EQ(window.tokens(), 3);
  EXPECT_EQ(window.length(), Millis(30));
  EXPECT_EQ(window.windows(), 1);
}

TEST(SteadyWindowTest, OpensAgainAndAddsUp) {
  SteadyWindow window(1);
  window.OnFirstTokens(At(0));
  window.OnTokens(4);
  window.OnEnd(At(10));
  window.OnFirstTokens(At(100));
  window.OnTokens(6);
  window.OnEnd(At(120));
  EXPECT_EQ(window.tokens(), 10);
  EXPECT_EQ(window.length(), Millis(30));
  EXPECT_EQ(window.windows(), 2);
}

TEST(SteadyWindowTest, IsEmptyWhenNeverAllDecode) {
  SteadyWindow window(2);
  for (int i = 0; i < 2; ++i) {
    window.OnFirstTokens(At(10 * i));
    window.OnTokens(3);
    window.OnEnd(At(10 * i + 5));
  }
  EXPECT_EQ(window.windows(), 0);
  EXPECT_EQ(window.tokens(), 0);
  EXPECT_EQ(window.length(), absl::ZeroDuration());
}

TEST(SteadyWindowTest, IsEmptyWhenTheFirstTokenIsTheLast) {
  SteadyWindow window(1);
  window.OnFirstTokens(At(0));
  window.OnEnd(At(0));
  EXPECT_EQ(window.windows(), 0);
}

TEST(RunStatisticsTest, LatenciesOfOneRequest) {
  RunStatistics run({.streams = 1, .input_len = 100, .output_len = 7}, At(0));
  RequestTrace request(At(5));
  run.OnTokens(request, At(25), 2);
  run.OnTokens(request, At(35), 1);
  run.OnTokens(request, At(65), 3);  // three tokens in 30 ms
  run.OnTokens(request, At(69), 1);
  run.OnEnd(request, At(70), RequestEnd::kCompleted, ServerTimes{Millis(3), Millis(11)});

  EXPECT_EQ(run.completed(), 1);
  EXPECT_EQ(run.prompt_tokens(), 100);
  EXPECT_EQ(run.output_tokens(), 7);
  EXPECT_EQ(run.length(), Millis(70));
  EXPECT_EQ(run.first_token().Percentile(50), Millis(20));
  EXPECT_EQ(run.whole().Percentile(50), Millis(65));
  // 4, 10, 10, 10, 10 ms: the two tokens of the first message have no gap.
  EXPECT_EQ(run.between_tokens().count(), 5);
  EXPECT_EQ(run.between_tokens().Percentile(20), Millis(4));
  EXPECT_EQ(run.between_tokens().Percentile(21), Millis(10));
  EXPECT_EQ(run.per_token().count(), 1);
  EXPECT_EQ(run.per_token().Mean(), absl::Microseconds(8800));  // 44 ms / 5
  EXPECT_EQ(run.queue().Mean(), Millis(3));
  EXPECT_EQ(run.prefill().Mean(), Millis(11));
  EXPECT_EQ(run.steady().tokens(), 5);
  EXPECT_EQ(run.steady().length(), Millis(44));
}

TEST(RunStatisticsTest, TheSteadyWindowClosesWithTheLastTokenNotTheStream) {
  RunStatistics run({.streams = 2, .input_len = 1, .output_len = 3}, At(0));
  RequestTrace a(At(0));
  RequestTrace b(At(0));
  run.OnTokens(a, At(10), 1);
  run.OnTokens(b, At(20), 1);
  run.OnTokens(a, At(21), 1);
  run.OnTokens(b, At(30), 1);
  run.OnTokens(a, At(31), 1);  // its last
  run.OnTokens(b, At(40), 1);
  run.OnEnd(a, At(50), RequestEnd::kCompleted);
  run.OnEnd(b, At(51), RequestEnd::kCompleted);
  EXPECT_EQ(run.steady().tokens(), 3);
  EXPECT_EQ(run.steady().length(), Millis(11));
  EXPECT_EQ(run.steady().windows(), 1);
}

TEST(RunStatisticsTest, WhatDidNotCompleteCountsItsTokensButNoLatencyOfTheWhole) {
  RunStatistics run({.streams = 2, .input_len = 10, .output_len = 4}, At(0));
  RequestTrace failed(At(0));
  RequestTrace cancelled(At(0));
  RequestTrace refused(At(0));
  run.OnEnd(refused, At(1), RequestEnd::kFailed);
  run.OnTokens(failed, At(10), 1);
  run.OnTokens(cancelled, At(10), 1);
  run.OnTokens(failed, At(20), 1);
  run.OnEnd(failed, At(30), RequestEnd::kFailed);
  run.OnEnd(cancelled, At(40), RequestEnd::kCancelled);
  EXPECT_EQ(run.completed(), 0);
  EXPECT_EQ(run.failed(), 2);
  EXPECT_EQ(run.cancelled(), 1);
  EXPECT_EQ(run.prompt_tokens(), 20);
  EXPECT_EQ(run.output_tokens(), 3);
  EXPECT_EQ(run.length(), Millis(40));
  EXPECT_EQ(run.first_token().count(), 2);
  EXPECT_EQ(run.whole().count(), 0);
  EXPECT_EQ(run.per_token().count(), 0);
  // From 10 until the failure at 30.
  EXPECT_EQ(run.steady().tokens(), 1);
  EXPECT_EQ(run.steady().length(), Millis(20));
}

TEST(RunStatisticsTest, OneTokenHasNoGap) {
  RunStatistics run({.streams = 1, .input_len = 10, .output_len = 1}, At(0));
  RequestTrace request(At(0));
  run.OnTokens(request, At(10), 1);
  run.OnEnd(request, At(11), RequestEnd::kCompleted);
  EXPECT_EQ(run.between_tokens().count(), 0);
  EXPECT_EQ(run.per_token().count(), 0);
  EXPECT_EQ(run.steady().windows(), 0);
}

}  // namespace
}  // namespace conclave::client
