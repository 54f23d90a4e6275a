#include "coordinator/scheduler.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/list_tokenizer_testing.h"
#include "coordinator/scheduler_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Scheduler, GeneratesMaxTokensInOrderAndComputesEachPositionOnce) {
  World world;
  const auto sink = world.Submit(7, 10, 24);
  world.Run();
  ASSERT_TRUE(sink->ended());
  EXPECT_TRUE(sink->outcome().status.ok());
  EXPECT_EQ(sink->outcome().reason, FinishReason::kLength);
  EXPECT_EQ(sink->outcome().prompt_tokens, 10);
  EXPECT_EQ(sink->outcome().completion_tokens, 24);
  EXPECT_EQ(sink->tokens(), Expected(7, 10, 24));
  EXPECT_EQ(world.scheduler.counters().tokens_computed, 10u + 24 - 1);
  EXPECT_EQ(world.scheduler.counters().overrun_tokens, 0u);
  EXPECT_EQ(world.scheduler.counters().requests_finished, 1u);
  EXPECT_EQ(world.used_full(), 0);
  EXPECT_EQ(world.used_sliding(), 0);
}

TEST(Scheduler, NeverPlansPastMaxTokens) {
  World world;
  world.Submit(1, 5, 3);
  int plans = world.Plan();
  EXPECT_EQ(plans, 2);
  world.Answer();
  plans += world.Plan();
  // Prefill and two decode steps give three tokens.
  EXPECT_EQ(plans, 3);
  world.Answer();
  EXPECT_EQ(world.Plan(), 0);
}

TEST(Scheduler, EndsWithLengthAtTheContext) {
  World world;
  const auto sink = world.Submit(3, kContext - 4, 100);
  world.Run();
  EXPECT_EQ(sink->outcome().reason, FinishReason::kLength);
  EXPECT_EQ(sink->outcome().completion_tokens, 4);
  EXPECT_EQ(world.scheduler.counters().tokens_computed, kContext - 1u);
}

TEST(Scheduler, KeepsTwoPlansInFlightAndTheSecondUsesTheTokenStillOnTheDevice) {
  World world;
  const auto sink = world.Submit(1, 5, 10);
  EXPECT_EQ(world.Plan(), 2);
  EXPECT_TRUE(sink->tokens().empty());
  const internal::v1::StepPlan& second = world.sent[1].groups[0];
  ASSERT_EQ(second.chunks_size(), 1);
  EXPECT_EQ(second.chunks(0).start_position(), 5u);
  EXPECT_TRUE(second.chunks(0).tokens().empty());
  EXPECT_TRUE(second.chunks(0).sample());
  EXPECT_EQ(world.scheduler.counters().max_plans_in_flight, 2);
}

TEST(Scheduler, TheFirstTokenArrivesBeforeTheLastStepIsPlanned) {
  World world;
  const auto sink = world.Submit(1, 5, 10);
  world.Plan();
  world.Answer();
  EXPECT_EQ(sink->tokens(), Expected(1, 5, 1));
  EXPECT_FALSE(sink->ended());
}

// Token i is spelled by the letter of i modulo 26.
std::shared_ptr<const ListTokenizer> Letters() {
  std::vector<std::string> tokens;
  for (int i = 0; i < kVocab; ++i) tokens.emplace_back(1, static_cast<char>('a' + i % 26));
  return std::make_shared<const ListTokenizer>(tokens);
}

// Of the completion's tokens [first, first + 3).
std::string SpelledBy(RequestId seed, int prompt, int first) {
  const std::vector<int> tokens = Expected(seed, prompt, first + 3);
  return Letters()->Decode(std::span(tokens).subspan(first));
}

TEST(Scheduler, AStopStringEndsTheSequenceWithTheTokenThatCompletesIt) {
  World world;
  const auto sink = world.Submit(1, 5, 50, [](Request& request) {
    request.stop_strings = std::make_shared<const StopStrings>(
        Letters(), std::vector<std::string>{"no such thing", SpelledBy(1, 5, 4)});
  });
  world.Run();
  EXPECT_EQ(sink->tokens(), Expected(1, 5, 7));
  EXPECT_EQ(sink->outcome().reason, FinishReason::kStop);
  EXPECT_EQ(sink->outcome().stop_string, SpelledBy(1, 5, 4));
  EXPECT_EQ(sink->outcome().completion_tokens, 7);
  EXPECT_EQ(world.scheduler.counters().overrun_tokens, 1u);
  EXPECT_EQ(world.used_full(), 0);
}

TEST(Scheduler, AStopStringWithinMinTokensCountsForNothing) {
  World world;
  const auto sink = world.Submit(1, 5, 20, [](Request& request) {
    request.min_tokens = 7;
    request.stop_strings = std::make_shared<const StopStrings>(
        Letters(), std::vector<std::string>{SpelledBy(1, 5, 4)});
  });
  world.Run();
  EXPECT_EQ(sink->tokens(), Expected(1, 5, 20));
  EXPECT_EQ(sink->outcome().reason, FinishReason::kLength);
}

TEST(Scheduler, LogProbabilitiesOfThePromptComeInOrderWhateverItsChunks) {
  SchedulerOptions options;
  options.prefill_chunk = 7;
  World world(options);
  const auto sink = world.Submit(1, 40, 3, [](Request& request) { request.prompt_logprobs = 1; });
  const auto other = world.Submit(2, 20, 3, [](Request& request) { request.prompt_logprobs = 0; });
  world.Run();
  const std::vector<PromptLogprob> prompt = sink->prompt();
  ASSERT_EQ(prompt.size(), 39u);
  for (int i = 0; i < 39; ++i) {
    const PromptLogprob& logprob = prompt[i];
    EXPECT_EQ(logprob.token, i + 2);  // the prompt begins with its id
    EXPECT_EQ(logprob.logprob, static_cast<float>(-(i + 2)));
    EXPECT_THAT(logprob.top, ElementsAre(std::pair(i, -1.0f)));
  }
  ASSERT_EQ(other->prompt().size(), 19u);
  EXPECT_TRUE(other->prompt()[18].top.empty());
  EXPECT_EQ(sink->tokens(), Expected(1, 40, 3));
}

TEST(Scheduler, WorkersAreToldTheTokensThatPenaltiesCount) {
  World world;
  world.Submit(1, 5, 3, [](Request& request) { request.sampling.set_presence_penalty(1); });
  world.Submit(2, 5, 3);
  world.Plan();
  const auto& introduced = world.sent[0].groups[0].new_sequences();
  ASSERT_EQ(introduced.size(), 2);
  EXPECT_THAT(introduced[0].history(), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_TRUE(introduced[1].history().empty());
}

TEST(Scheduler, AnAnswerWithoutTheLogProbabilitiesAskedForEndsTheEpoch) {
  World world;
  world.Submit(1, 5, 3, [](Request& request) { request.prompt_logprobs = 2; });
  world.Plan();
  internal::v1::StepResult result = world.ranks[0].Execute(world.sent[0].groups[0]);
  result.mutable_target_logprobs(0)->mutable_top_tokens()->RemoveLast();
  const absl::Status status = world.scheduler.OnResult(0, result);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no 4 log-probabilities of slot"));
}

TEST(Scheduler, AnExtraResultAfterAStopIsDroppedAndItsSlotFreedOnlyThen) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  const auto stopped = world.Submit(
      1, 5, 50, [](Request& request) { request.stop_token_ids = {FakeToken(1, 7, kVocab)}; });
  const auto waiting = world.Submit(2, 5, 2);
  while (!stopped->ended()) {
    world.Plan();
    world.Answer();
  }
  // The stop id is included.
  EXPECT_EQ(stopped->tokens(), Expected(1, 5, 3));
  EXPECT_EQ(stopped->outcome().reason, FinishReason::kStop);
  // Still in the plan in flight: nothing is free yet, so the other one waits.
  EXPECT_EQ(world.Plan(), 0);
  EXPECT_GT(world.used_full(), 0);
  world.Answer();
  EXPECT_EQ(world.used_full(), 0);
  EXPECT_EQ(world.scheduler.counters().overrun_tokens, 1u);
  EXPECT_EQ(world.scheduler.counters().tokens_computed, 5u + 3 - 1 + 1);
  ASSERT_GT(world.Plan(), 0);
  EXPECT_THAT(world.sent[0].groups[0].freed_slots(), ElementsAre(0u));
  world.Run();
  EXPECT_EQ(waiting->tokens(), Expected(2, 5, 2));
}

TEST(Scheduler, EndTokensOfTheModelStopUnlessIgnored) {
  SchedulerOptions options;
  options.eos_token_ids = {FakeToken(1, 6, kVocab)};
  World world(options);
  const auto stops = world.Submit(1, 5, 20);
  world.Run();
  const auto goes_on = world.Submit(1, 5, 20, IgnoreEos);  // five tokens: nothing to be cached
  world.Run();
  EXPECT_EQ(stops->tokens(), Expected(1, 5, 2));
  EXPECT_EQ(stops->outcome().reason, FinishReason::kStop);
  EXPECT_EQ(goes_on->tokens(), Expected(1, 5, 20));
  EXPECT_EQ(goes_on->outcome().reason, FinishReason::kLength);
}

TEST(Scheduler, ADeeperPipelineStillOverrunsByOneToken) {
  SchedulerOptions options;
  options.pipeline_depth = 4;
  World world(options);
  world.Submit(1, 5, 50,
               [](Request& request) { request.stop_token_ids = {FakeToken(1, 9, kVocab)}; });
  world.Run();
  EXPECT_EQ(world.scheduler.counters().overrun_tokens, 1u);
}

TEST(Scheduler, DecodingRowsComeFirstThenChunksOfPrompts) {
  SchedulerOptions options;
  options.max_step_tokens = 20;
  options.prefill_chunk = 16;
  options.max_running = 8;
  World world(options);
  world.Submit(1, 4, 50);
  world.Plan();
  world.Answer();
  world.Submit(2, 30, 5);
  world.Submit(3, 30, 5);
  world.Plan();
  const internal::v1::StepPlan& plan = world.sent.back().groups[0];
  ASSERT_EQ(plan.chunks_size(), 3);
  EXPECT_TRUE(plan.chunks(0).tokens().empty());
  EXPECT_EQ(plan.chunks(1).tokens_size(), 16);
  EXPECT_FALSE(plan.chunks(1).sample());
  EXPECT_EQ(plan.chunks(2).tokens_size(), 3);
  world.Run();
  EXPECT_EQ(world.scheduler.counters().requests_finished, 3u);
}

TEST(Scheduler, ChunkingAPromptChangesNothingButTheSteps) {
  for (int chunk : {1, 7, 64, 256}) {
    SchedulerOptions options;
    options.prefill_chunk = chunk;
    World world(options);
    const auto sink = world.Submit(9, 100, 8);
    world.Run();
    EXPECT_EQ(sink->tokens(), Expected(9, 100, 8));
    EXPECT_EQ(world.scheduler.counters().tokens_computed, 107u);
  }
}

TEST(Scheduler, RequestsGoToTheGroupWithTheLeastLoadAndIdleRanksGetEveryPlan) {
  SchedulerOptions options;
  options.shape = {.dp = 3, .tp = 2};
  World world(options);
  world.Submit(1, 50, 4);
  world.Submit(2, 5, 4);
  world.Submit(3, 5, 4);
  world.Submit(4, 5, 4);
  world.Plan();
  EXPECT_EQ(world.sent[0].groups[0].chunks_size(), 1);
  EXPECT_EQ(world.sent[0].groups[1].chunks_size(), 2);
  EXPECT_EQ(world.sent[0].groups[2].chunks_size(), 1);
  world.Run();
  const auto only = world.Submit(5, 5, 1);
  world.Plan();
  for (const internal::v1::StepPlan& plan : world.sent[0].groups) {
    EXPECT_EQ(plan.step(), world.sent[0].step);
    EXPECT_EQ(plan.exchange_mode(), internal::v1::EXCHANGE_MODE_EXACT);
    EXPECT_EQ(plan.bucket(), 4u);  // five rows over two ranks
  }
  world.Run();
  EXPECT_EQ(only->tokens(), Expected(5, 5, 1));
}

TEST(Scheduler, AdmissionIsInOrderSoALongRequestIsNotOvertakenForEver) {
  World world({}, 8, 64);
  const auto running = world.Submit(1, 60, 4);
  world.Plan();
  const auto too_long_for_now = world.Submit(2, 100, 10);
  const auto would_fit = world.Submit(3, 5, 2);
  EXPECT_EQ(world.scheduler.queued(), 2);
  while (!running->ended()) {
    EXPECT_TRUE(would_fit->tokens().empty());
    world.Answer();
    world.Plan();
  }
  world.Run();
  EXPECT_TRUE(too_long_for_now->ended());
  EXPECT_TRUE(would_fit->ended());
}

TEST(Scheduler, CancelledWorkFreesItsBlocksWithinTwoSteps) {
  World world;
  const auto sink = world.Submit(1, 40, 100);
  world.Plan();
  world.Answer();
  world.Plan();
  world.scheduler.Cancel(1);
  ASSERT_TRUE(sink->ended());
  EXPECT_TRUE(sink->outcome().status.ok());
  EXPECT_EQ(sink->outcome().reason, FinishReason::kCancelled);
  EXPECT_EQ(world.Plan(), 0);
  EXPECT_GT(world.used_full(), 0);
  world.Answer();
  world.Answer();
  EXPECT_EQ(world.used_full(), 0);
  EXPECT_EQ(world.used_sliding(), 0);
  EXPECT_EQ(world.scheduler.counters().requests_cancelled, 1u);
}

TEST(Scheduler, CancellingWhatIsQueuedOrUnknownOrOverTouchesNothingElse) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  const auto running = world.Submit(1, 5, 3);
  const auto queued = world.Submit(2, 5, 3);
  world.Plan();
  world.scheduler.Cancel(2);
  EXPECT_EQ(queued->outcome().reason, FinishReason::kCancelled);
  EXPECT_EQ(world.scheduler.queued(), 0);
  world.scheduler.Cancel(77);
  world.Run();
  world.scheduler.Cancel(1);
  EXPECT_EQ(running->outcome().reason, FinishReason::kLength);
  EXPECT_EQ(world.scheduler.counters().requests_cancelled, 1u);
}

TEST(Scheduler, PastItsDeadlineARequestEndsAndFreesItsBlocks) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  EXPECT_EQ(world.scheduler.NextDeadline(), absl::InfiniteFuture());
  static absl::Time deadline;
  deadline = world.clock.Now() + absl::Seconds(1);
  const auto with_deadline = [](Request& request) { request.deadline = deadline; };
  const auto running = world.Submit(1, 5, 100, with_deadline);
  const auto queued = world.Submit(2, 5, 100, with_deadline);
  world.Plan();
  EXPECT_EQ(world.scheduler.NextDeadline(), deadline);
  world.scheduler.Expire();
  EXPECT_FALSE(running->ended());
  world.clock.Advance(absl::Seconds(1));
  world.scheduler.Expire();
  for (const auto& sink : {running, queued}) {
    ASSERT_TRUE(sink->ended());
    EXPECT_EQ(sink->outcome().status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(sink->outcome().total_time, absl::Seconds(1));
  }
  world.Answer();
  world.Answer();
  EXPECT_EQ(world.used_full(), 0);
  EXPECT_EQ(world.scheduler.NextDeadline(), absl::InfiniteFuture());
}

TEST(Scheduler, ClassificationEndsAfterPrefillWithItsLogitsInOrder) {
  SchedulerOptions options;
  options.prefill_chunk = 8;
  options.head_labels = {2, 3};
  World world(options);
  const auto sink = world.Submit(1, 20, 0, [](Request& request) {
    request.heads = {{.head = 1, .first = 0, .count = 20}, {.head = 0, .first = 19, .count = 1}};
  });
  world.Run();
  ASSERT_TRUE(sink->ended());
  EXPECT_EQ(sink->outcome().reason, FinishReason::kHeads);
  EXPECT_TRUE(sink->tokens().empty());
  const auto pieces = sink->pieces();
  ASSERT_EQ(pieces.size(), 4u);
  int position = 0;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(pieces[i].head, 1);
    EXPECT_EQ(pieces[i].first_position, position);
    EXPECT_EQ(pieces[i].logits[2], position * 10.0f + 2);
    position += static_cast<int>(pieces[i].logits.size()) / 3;
  }
  EXPECT_EQ(position, 20);
  EXPECT_EQ(pieces[3].head, 0);
  EXPECT_THAT(pieces[3].logits, ElementsAre(190.0f, 191.0f));
  EXPECT_EQ(world.scheduler.counters().tokens_computed, 20u);
  EXPECT_EQ(world.used_full(), 0);
}

TEST(Scheduler, PastTheWindowASequenceHoldsAConstantNumberOfSlidingBlocks) {
  World world;
  world.Submit(1, 4, 200, IgnoreEos);
  int most = 0;
  for (world.Plan(); !world.sent.empty(); world.Plan()) {
    most = std::max(most, world.used_sliding());
    world.Answer();
  }
  EXPECT_EQ(most, 2);
  EXPECT_EQ(world.scheduler.groups()[0]->pools().max_per_sequence.sliding, 2);
  EXPECT_EQ(world.scheduler.groups()[0]->pools().max_per_sequence.full, 13);
}

TEST(Scheduler, WhenTheEpochEndsEveryRequestEndsAndTheNextEpochStartsClean) {
  SchedulerOptions options;
  options.max_running = 2;
  World world(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (RequestId id = 1; id <= 4; ++id) sinks.push_back(world.Submit(id, 5, 20));
  world.Plan();
  world.Answer();
  world.scheduler.FailAll(absl::UnavailableError("rank 1 was lost"));
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->ended());
    EXPECT_EQ(sink->outcome().status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(sinks[0]->tokens(), Expected(1, 5, 1));
  EXPECT_EQ(world.scheduler.NextPlan(), nullptr);
  EXPECT_EQ(world.scheduler.counters().requests_failed, 4u);
  world.Begin(2);
  const auto sink = world.Submit(9, 5, 3);
  world.Plan();
  EXPECT_EQ(world.sent[0].step, 0u);
  EXPECT_EQ(world.sent[0].groups[0].epoch(), 2u);
  world.Run();
  EXPECT_EQ(sink->tokens(), Expected(9, 5, 3));
}

TEST(Scheduler, APlanRetiresWhenEveryRankHasAnsweredButTokensDoNotWait) {
  SchedulerOptions options;
  options.shape = {.dp = 1, .tp = 2};
  World world(options);
  const auto sink = world.Submit(1, 5, 10);
  world.Plan();
  const internal::v1::StepResult first = world.ranks[0].Execute(world.sent[0].groups[0]);
  ASSERT_TRUE(world.scheduler.OnResult(0, first).ok());
  EXPECT_EQ(sink->tokens().size(), 1u);
  EXPECT_EQ(world.scheduler.plans_in_flight(), 2);
  EXPECT_EQ(world.Plan(), 0);
  internal::v1::StepResult other = first;
  other.clear_sampled();
  ASSERT_TRUE(world.scheduler.OnResult(1, other).ok());
  EXPECT_EQ(world.scheduler.plans_in_flight(), 1);
  EXPECT_EQ(world.Plan(), 1);
}

TEST(Scheduler, ForcedExpertIdsTravelWithTheNewSequenceOnce) {
  World world;
  world.Submit(1, 2, 3, [](Request& request) { request.forced_expert_ids = {1, 2, 3, 4}; });
  world.Plan();
  ASSERT_EQ(world.sent[0].groups[0].new_sequences_size(), 1);
  EXPECT_THAT(world.sent[0].groups[0].new_sequences(0).forced_expert_ids(),
              ElementsAre(1u, 2u, 3u, 4u));
  EXPECT_EQ(world.sent[1].groups[0].new_sequences_size(), 0);
}

class WrongAnswer : public ::testing::TestWithParam<int> {};

TEST_P(WrongAnswer, IsInternal) {
  World world;
  world.Submit(1, 5, 10);
  world.Plan();
  internal::v1::StepResult result = world.ranks[0].Execute(world.sent[0].groups[0]);
  switch (GetParam()) {
    case 0:
      result.set_step(1);
      break;
    case 1:
      result.clear_sampled();
      break;
    case 2:
      result.mutable_sampled(0)->set_position(4);
      break;
    case 3:
      result.mutable_sampled(0)->set_token(kVocab);
      break;
    case 4:
      result.mutable_sampled(0)->set_slot(1);
      break;
    case 5:
      *result.add_sampled() = result.sampled(0);
      break;
    case 6:
      result.add_head_logits();
      break;
  }
  EXPECT_EQ(world.scheduler.OnResult(0, result).code(), absl::StatusCode::kInternal);
}

INSTANTIATE_TEST_SUITE_P(Scheduler, WrongAnswer, ::testing::Range(0, 7));

TEST(Scheduler, AnAnswerToAPlanThatWasNotSentIsInternal) {
  World world;
  EXPECT_EQ(world.scheduler.OnResult(0, {}).code(), absl::StatusCode::kInternal);
}

TEST(Scheduler, StallsOnlyWhenWorkIsThereAndNoResultCame) {
  World world;
  world.clock.Advance(absl::Hours(1));
  EXPECT_FALSE(world.scheduler.progress().Stalled(world.clock.Now()));
  world.Submit(1, 5, 50);
  world.Plan();
  const absl::Duration limit = world.scheduler.progress().limit;
  world.clock.Advance(limit);
  EXPECT_FALSE(world.scheduler.progress().Stalled(world.clock.Now()));
  world.clock.Advance(absl::Milliseconds(1));
  EXPECT_TRUE(world.scheduler.progress().Stalled(world.clock.Now()));
  world.Answer();
  EXPECT_FALSE(world.scheduler.progress().Stalled(world.clock.Now()));
}

TEST(ProgressWatch, SlowStepsStretchTheLimit) {
  ProgressWatch watch;
  const absl::Duration at_start = watch.Get().limit;
  for (int i = 0; i < 9; ++i) watch.StepDone(absl::UnixEpoch(), absl::Seconds(2));
  EXPECT_EQ(watch.Get().limit, at_start * 4);
  for (int i = 0; i < 64; ++i) watch.StepDone(absl::UnixEpoch(), absl::Milliseconds(1));
  EXPECT_EQ(watch.Get().limit, at_start);
}

TEST(SchedulerOptions, ABadOptionIsNamedWithItsNumber) {
  SchedulerOptions options;
  options.max_running = 65;
  options.max_step_tokens = 64;
  const absl::Status status = CheckSchedulerOptions(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_running is 65"));
  options = {};
  options.pipeline_depth = 0;
  EXPECT_FALSE(CheckSchedulerOptions(options).ok());
  EXPECT_TRUE(CheckSchedulerOptions({}).ok());
}

}  // namespace
}  // namespace conclave::coordinator
