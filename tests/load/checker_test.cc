#include "tests/load/checker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>

namespace conclave::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Work 0 goes on for ever, work 1 stops after three tokens, work 2 has two completions.
constexpr char kTruths[] =
    "truth 0 0 10 11 12 13 14 15\n"
    "truth 1 0 20 21 22\n"
    "truth 2 0 30 31 32 33\n"
    "truth 2 1 40 41 42 43\n";

CheckReport Judge(const std::string& history, const CheckLimits& limits = {}) {
  std::istringstream truths_text(kTruths);
  std::istringstream text(history);
  const auto truths = ParseTruths(truths_text);
  const auto streams = ParseHistory(text);
  EXPECT_TRUE(truths.ok() && streams.ok()) << streams.status();
  return Check(*truths, *streams, limits);
}

std::vector<std::string> Violations(const std::string& history) {
  return Judge(history).violations;
}

TEST(Checker, WhatIsRightPasses) {
  const CheckReport report = Judge(
      "stream 1 0 1 4 read 0\n"
      "tokens 1000 0 10 11\ntokens 2500 0 12\ntokens 3000 0 13\nfinish 3000 0 length 4 16\n"
      "end 3100 0\n"
      "stream 2 1 1 50 read 0\n"
      "tokens 900 0 20 21 22\nfinish 900 0 stop 3 0\nend 950 0\n"
      "stream 3 2 2 2 read 0\n"
      "tokens 5 1 40\ntokens 6 0 30 31\nfinish 6 0 length 2 0\ntokens 7 1 41\n"
      "finish 7 1 length 2 0\nend 8 0\n"
      "stream 4 0 1 6 cancel 1\ntokens 5 0 10\nend 6 1\n"
      "stream 5 0 1 6 deadline 500\ntokens 5 0 10 11\nend 600 4\n"
      "stream 6 0 1 6 deadline 500\nend 1 4\n"
      "stream 7 0 1 6 read 0\nend 1 8\n");
  EXPECT_THAT(report.violations, IsEmpty());
  EXPECT_EQ(report.streams, 7);
  EXPECT_EQ(report.finished, 3);
  EXPECT_EQ(report.cancelled, 1);
  EXPECT_EQ(report.expired, 2);
  EXPECT_EQ(report.refused, 1);
  EXPECT_EQ(report.tokens, 4 + 3 + 4 + 1 + 2);
  EXPECT_EQ(report.cached_tokens, 16);
  EXPECT_EQ(report.median_first_token_micros, 900);
  EXPECT_EQ(report.longest_first_token_micros, 1000);
  EXPECT_EQ(report.longest_pause_micros, 1500);
  EXPECT_THAT(Describe(report), HasSubstr("0 violations"));
}

struct Broken {
  const char* name;
  const char* history;
  const char* violation;
};

class BrokenHistory : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenHistory, IsSeen) {
  const std::vector<std::string> violations = Violations(GetParam().history);
  ASSERT_FALSE(violations.empty());
  EXPECT_THAT(violations.front(), HasSubstr(GetParam().violation));
}

INSTANTIATE_TEST_SUITE_P(
    Each, BrokenHistory,
    ::testing::Values(
        Broken{"NoEnd", "stream 1 0 1 4 read 0\ntokens 1 0 10\n", "1: it has no end"},
        Broken{"TwoEnds", "stream 1 0 1 4 cancel 0\nend 1 1\nend 2 1\n", "1: an event after"},
        Broken{"TokensAfterTheEnd", "stream 1 0 1 4 cancel 0\nend 1 1\ntokens 2 0 10\n",
               "1: an event after the end"},
        Broken{"TokensAfterTheFinish",
               "stream 1 1 1 9 read 0\ntokens 1 0 20 21 22\nfinish 1 0 stop 3 0\ntokens 2 0 23\n"
               "end 3 0\n",
               "1: completion 0 goes on after its finish"},
        Broken{"TwoFinishes",
               "stream 1 1 1 9 read 0\ntokens 1 0 20 21 22\nfinish 1 0 stop 3 0\n"
               "finish 1 0 stop 3 0\nend 3 0\n",
               "1: completion 0 goes on"},
        Broken{"NoFinish", "stream 1 1 1 9 read 0\ntokens 1 0 20 21 22\nend 3 0\n",
               "1: completion 0 has no finish"},
        Broken{"OneCompletionWithoutFinish",
               "stream 1 2 2 2 read 0\ntokens 1 0 30 31\nfinish 1 0 length 2 0\nend 3 0\n",
               "1: completion 1 has no finish"},
        Broken{"CompletionThatWasNotAsked", "stream 1 0 1 4 read 0\ntokens 1 1 10\nend 2 0\n",
               "1: completion 1 of 1"},
        Broken{"LostWorker", "stream 1 0 1 4 read 0\ntokens 1 0 10\nend 2 14\n",
               "1: it ended with code 14"},
        Broken{"RefusedLate", "stream 1 0 1 4 read 0\ntokens 1 0 10\nend 2 8\n",
               "1: refused after a response"},
        Broken{"TokenTwice",
               "stream 1 0 1 4 read 0\ntokens 1 0 10 11 11 12\nfinish 1 0 length 4 0\nend 2 0\n",
               "2: completion 0 differs from token 2"},
        Broken{"TokenLost",
               "stream 1 0 1 3 read 0\ntokens 1 0 10 12 13\nfinish 1 0 length 3 0\nend 2 0\n",
               "2: completion 0 differs from token 1"},
        Broken{"LastTokenLost",
               "stream 1 0 1 4 read 0\ntokens 1 0 10 11 12\nfinish 1 0 length 4 0\nend 2 0\n",
               "2: completion 0 has 4 tokens, 3 arrived"},
        Broken{"EndedEarly",
               "stream 1 0 1 4 read 0\ntokens 1 0 10 11\nfinish 1 0 stop 2 0\nend 2 0\n",
               "2: completion 0 ended (stop) after 2 tokens of 4"},
        Broken{"PastMaxTokens",
               "stream 1 0 1 2 read 0\ntokens 1 0 10 11 12\nfinish 1 0 length 3 0\nend 2 0\n",
               "2: completion 0 ended (length) after 3 tokens of 2"},
        Broken{"PastItsStop",
               "stream 1 1 1 9 read 0\ntokens 1 0 20 21 22 23\nfinish 1 0 length 4 0\nend 2 0\n",
               "2: completion 0 differs from token 3"},
        Broken{"WrongReason",
               "stream 1 0 1 3 read 0\ntokens 1 0 10 11 12\nfinish 1 0 stop 3 0\nend 2 0\n",
               "2: completion 0 ended for stop after 3"},
        Broken{"CompletionsMixedUp",
               "stream 1 2 2 1 read 0\ntokens 1 0 40\nfinish 1 0 length 1 0\ntokens 1 1 30\n"
               "finish 1 1 length 1 0\nend 3 0\n",
               "2: completion 0 differs from token 0"},
        Broken{"NotCancelled", "stream 1 0 1 4 read 0\nend 2 1\n", "3: CANCELLED, and nobody did"},
        Broken{"FinishCancelled", "stream 1 0 1 4 read 0\nfinish 2 0 cancelled 0 0\nend 2 0\n",
               "3: cancelled, and nobody did"},
        Broken{"NoDeadline", "stream 1 0 1 4 read 0\nend 2 4\n",
               "3: DEADLINE_EXCEEDED without a deadline"},
        Broken{"LongAfterItsDeadline", "stream 1 0 1 4 deadline 500\nend 1000501 4\n",
               "3: it ended 1.000 s past its deadline"},
        Broken{"UnknownWork", "stream 1 9 1 4 read 0\nend 1 8\n", "4: no truth"}),
    [](const auto& parameter) { return parameter.param.name; });

TEST(Checker, AFirstTokenThatIsTooLateIsAViolation) {
  const std::string history =
      "stream 1 0 1 1 read 0\ntokens 900 0 10\nfinish 900 0 length 1 0\nend 900 0\n";
  EXPECT_THAT(Judge(history, {.longest_first_token_micros = 900}).violations, IsEmpty());
  EXPECT_THAT(Judge(history, {.longest_first_token_micros = 899}).violations,
              ElementsAre(HasSubstr("its first token came after 0.001 s")));
}

TEST(History, WhatIsWrittenIsRead) {
  Stream stream{.id = 7,
                .work = 3,
                .completions = 2,
                .max_tokens = 9,
                .action = "cancel",
                .after = 4,
                .events = {}};
  stream.events.push_back(
      {.kind = Event::Kind::kTokens, .micros = 5, .index = 1, .tokens = {8, 9}});
  stream.events.push_back({.kind = Event::Kind::kFinish,
                           .micros = 6,
                           .index = 1,
                           .reason = "stop",
                           .count = 2,
                           .cached = 16});
  stream.events.push_back({.kind = Event::Kind::kEnd, .micros = 7, .code = 1});
  std::stringstream text;
  Write(stream, text);
  const std::string written = text.str();
  const auto streams = ParseHistory(text);
  ASSERT_TRUE(streams.ok());
  ASSERT_EQ(streams->size(), 1u);
  std::stringstream again;
  Write(streams->front(), again);
  EXPECT_EQ(again.str(), written);
  EXPECT_EQ(written, "stream 7 3 2 9 cancel 4\ntokens 5 1 8 9\nfinish 6 1 stop 2 16\nend 7 1\n");
}

TEST(History, LinesThatAreNoneOfThoseAreRefusedWithTheirNumber) {
  for (const std::string bad :
       {"tokens 1 0 5", "stream 1 0 1 4 sleep 0", "stream 1", "stream 1 0 1 4 read 0\nstream x"}) {
    std::istringstream text(bad);
    EXPECT_EQ(ParseHistory(text).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  std::istringstream text("stream 1 0 1 4 read 0\ntokens 1 0 5\ntokens 1 0 five\n");
  EXPECT_THAT(std::string(ParseHistory(text).status().message()), HasSubstr("line 3"));
  std::istringstream truths("truth 1 0 5 x\n");
  EXPECT_FALSE(ParseTruths(truths).ok());
}

}  // namespace
}  // namespace conclave::tests
