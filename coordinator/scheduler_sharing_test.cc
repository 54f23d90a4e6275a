// What sequences share: blocks, the cache of prefixes, and the time until their turn.

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/scheduler_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// --- Preemption ---

// 8 blocks; each of the two sequences needs 6 in the end.
TEST(Preemption, WhenBlocksRunOutTheLaterSequencePausesAndBothGetAllTheirTokens) {
  std::vector<uint64_t> computed_again;
  for (bool cached : {false, true}) {
    SchedulerOptions options;
    options.prefix_cache = cached;
    World world(options, 8, 64);
    const auto first = world.Submit(1, 20, 70, IgnoreEos);
    const auto second = world.Submit(2, 20, 70, IgnoreEos);
    world.Plan();
    EXPECT_EQ(world.scheduler.running(), 2);
    while (world.scheduler.counters().preemptions == 0) {
      world.Answer();
      world.Plan();
    }
    EXPECT_FALSE(first->ended());
    const size_t at_pause = second->tokens().size();
    while (!first->ended()) {
      world.Answer();
      world.Plan();
      if (world.scheduler.queued() == 0) continue;
      EXPECT_LE(second->tokens().size(), at_pause + 2);
    }
    world.Run();
    EXPECT_EQ(first->tokens(), Expected(1, 20, 70));
    EXPECT_EQ(second->tokens(), Expected(2, 20, 70));
    EXPECT_EQ(second->outcome().reason, FinishReason::kLength);
    EXPECT_EQ(world.scheduler.counters().preemptions, 1u);
    EXPECT_EQ(world.scheduler.counters().overrun_tokens, 0u);
    EXPECT_EQ(world.used_full(), 0);
    computed_again.push_back(world.scheduler.counters().tokens_computed - 2 * 89);
    EXPECT_GE(computed_again.front(), 20 + at_pause - 1);
  }
  // What is still in the cache is not.
  EXPECT_LT(computed_again[1], computed_again[0]);
}

TEST(Preemption, ASuspendedRequestGoesOnWithTheFirstPlanOfTheNextEpoch) {
  World world;
  const auto sink = world.Submit(1, 40, 5, IgnoreEos);
  const WorldPlan* plan = world.scheduler.NextPlan();
  ASSERT_NE(plan, nullptr);
  world.sent.push_back(*plan);
  world.Answer();
  world.scheduler.Suspend();
  world.Begin(2);
  world.Run();
  EXPECT_EQ(sink->tokens(), Expected(1, 40, 5));
}

TEST(Preemption, SlidingBlocksRunOutToo) {
  SchedulerOptions options;
  options.prefill_chunk = 32;
  World world(options, 64, 7);
  const auto first = world.Submit(1, 40, 70, IgnoreEos);
  const auto second = world.Submit(2, 40, 70, IgnoreEos);
  const auto third = world.Submit(3, 40, 70, IgnoreEos);
  world.Run();
  EXPECT_EQ(first->tokens(), Expected(1, 40, 70));
  EXPECT_EQ(second->tokens(), Expected(2, 40, 70));
  EXPECT_EQ(third->tokens(), Expected(3, 40, 70));
}

TEST(Preemption, TheLowestPriorityPausesFirst) {
  World world({}, 8, 64);
  const auto low = world.Submit(1, 20, 70, [](Request& request) {
    request.ignore_eos = true;
    request.priority = -1;
  });
  const auto high = world.Submit(2, 20, 70, IgnoreEos);
  while (!high->ended()) {
    world.Plan();
    world.Answer();
  }
  EXPECT_FALSE(low->ended());
  world.Run();
  EXPECT_EQ(low->tokens(), Expected(1, 20, 70));
  EXPECT_EQ(high->tokens(), Expected(2, 20, 70));
}

TEST(Preemption, APausedRequestCanBeCancelledAndCanExpire) {
  for (bool cancels : {true, false}) {
    World world({}, 8, 64);
    const absl::Time deadline = world.clock.Now() + absl::Seconds(5);
    world.Submit(1, 20, 70, IgnoreEos);
    const auto paused = world.Submit(2, 20, 70, [deadline](Request& request) {
      request.ignore_eos = true;
      request.deadline = deadline;
    });
    do {
      world.Plan();
      world.Answer();
    } while (world.scheduler.queued() == 0);
    if (cancels) {
      world.scheduler.Cancel(2);
    } else {
      world.clock.Advance(absl::Seconds(5));
      world.scheduler.Expire();
    }
    ASSERT_TRUE(paused->ended());
    EXPECT_EQ(world.scheduler.queued(), 0);
    const std::vector<int> tokens = paused->tokens();
    EXPECT_EQ(tokens, Expected(2, 20, static_cast<int>(tokens.size())));
    world.Run();
    EXPECT_EQ(world.used_full(), 0);
  }
}

TEST(Preemption, AClassificationThatPausesReadsNoRowTwice) {
  SchedulerOptions options;
  options.prefill_chunk = 16;
  options.max_step_tokens = 64;
  options.head_labels = {2};
  World world(options, 8, 64);
  // Grows while the long text is read in chunks.
  const auto generation = world.Submit(1, 30, 80, [](Request& request) {
    request.ignore_eos = true;
    request.priority = 1;
  });
  for (int i = 0; i < 30; ++i) {
    world.Plan();
    world.Answer();
  }
  const auto text = world.Submit(
      2, 60, 0, [](Request& request) { request.heads = {{.head = 0, .first = 0, .count = 60}}; });
  world.Run();
  ASSERT_TRUE(text->ended());
  EXPECT_EQ(text->outcome().reason, FinishReason::kHeads);
  int position = 0;
  for (const auto& piece : text->pieces()) {
    EXPECT_EQ(piece.first_position, position);
    position += static_cast<int>(piece.logits.size()) / 2;
  }
  EXPECT_EQ(position, 60);
  EXPECT_EQ(generation->tokens(), Expected(1, 30, 80));
}

// --- Prefix cache ---

void SamePrompt(Request& request) {
  for (size_t i = 0; i < request.tokens.size(); ++i) request.tokens[i] = static_cast<int>(i);
}

TEST(PrefixHit, TheSecondRequestComputesOnlyWhatIsNotInTheCache) {
  World world;
  const auto first = world.Submit(1, 50, 8, SamePrompt);
  world.Run();
  EXPECT_EQ(first->outcome().cached_tokens, 0);
  const auto second = world.Submit(2, 50, 8, SamePrompt);
  world.Run();
  EXPECT_EQ(second->outcome().cached_tokens, 48);
  EXPECT_EQ(second->tokens(), Expected(2, 50, 8));
  EXPECT_EQ(world.scheduler.counters().tokens_computed, 57u + 9);
  EXPECT_EQ(world.scheduler.counters().prompt_tokens, 100u);
  EXPECT_EQ(world.scheduler.counters().hit_tokens, 48u);
}

TEST(PrefixHit, AConversationGoesOnWhereItsLastTurnEnded) {
  World world;
  const auto turn = world.Submit(1, 20, 30, IgnoreEos);
  world.Run();
  // 49 positions were computed: the prompt, and all but the last generated token.
  const auto next = world.Submit(2, 20, 5, [&](Request& request) {
    request.tokens = world.prompts[1];
    for (int token : turn->tokens()) request.tokens.push_back(token);
    for (int i = 0; i < 10; ++i) request.tokens.push_back(900 + i);
  });
  world.Run();
  EXPECT_EQ(next->outcome().cached_tokens, 48);
  EXPECT_EQ(next->tokens(), Expected(2, 60, 5));
}

// The block that an overrun completed holds a token that was never part of the output.
TEST(PrefixHit, BlocksWrittenByTheOverrunAreNotFound) {
  World world;
  const auto stopped = world.Submit(
      1, 20, 50, [](Request& request) { request.stop_token_ids = {FakeToken(1, 31, kVocab)}; });
  world.Run();
  ASSERT_EQ(stopped->tokens().size(), 12u);
  EXPECT_EQ(world.scheduler.counters().overrun_tokens, 1u);
  const auto next = world.Submit(2, 20, 5, [&](Request& request) {
    request.tokens = world.prompts[1];
    for (int token : stopped->tokens()) request.tokens.push_back(token);
    request.tokens.push_back(7);
  });
  world.Run();
  EXPECT_EQ(next->outcome().cached_tokens, 16);
}

TEST(PrefixHit, StopsBeforeTheFirstRowThatIsRead) {
  SchedulerOptions options;
  options.head_labels = {2};
  World world(options);
  for (int first : {0, 40, 49}) {
    const auto sink = world.Submit(first + 1, 50, 0, [first](Request& request) {
      SamePrompt(request);
      request.heads = {{.head = 0, .first = first, .count = 1}};
    });
    world.Run();
    EXPECT_EQ(sink->outcome().cached_tokens, first == 49 ? 48 : 0) << first;
    ASSERT_EQ(sink->pieces().size(), 1u);
    EXPECT_EQ(sink->pieces()[0].first_position, first);
  }
}

TEST(PrefixHit, ForcedRoutingNeitherUsesNorFillsTheCache) {
  World world;
  const auto forced = [](Request& request) {
    SamePrompt(request);
    request.forced_expert_ids = {1, 2};
  };
  world.Submit(1, 50, 4, forced);
  world.Run();
  const auto plain = world.Submit(2, 50, 4, SamePrompt);
  world.Run();
  EXPECT_EQ(plain->outcome().cached_tokens, 0);
  const auto again = world.Submit(3, 50, 4, forced);
  world.Run();
  EXPECT_EQ(again->outcome().cached_tokens, 0);
}

TEST(PrefixHit, ForksWaitForTheFirstOnesPromptAndShareItsBlocks) {
  World world;
  std::vector<std::shared_ptr<RecordingSink>> forks;
  for (RequestId id = 1; id <= 4; ++id) {
    forks.push_back(world.Submit(id, 100, 10, SamePrompt,
                                 id == 1 ? std::nullopt : std::optional<RequestId>(1)));
  }
  EXPECT_EQ(world.scheduler.queued(), 4);
  world.Run();
  EXPECT_EQ(world.scheduler.counters().tokens_computed, 109u + 3 * (4 + 9));
  for (RequestId id = 1; id <= 4; ++id) {
    EXPECT_EQ(forks[id - 1]->tokens(), Expected(id, 100, 10));
    EXPECT_EQ(forks[id - 1]->outcome().cached_tokens, id == 1 ? 0 : 96);
  }
  // 7 blocks of the first, and two own ones of each other.
  EXPECT_EQ(world.scheduler.groups()[0]->pools().full.used(), 0);
}

TEST(PrefixHit, ForksGoOnWhenTheFirstOneIsCancelled) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  world.Submit(9, 5, 4);
  world.Plan();
  world.Submit(10, 50, 4, SamePrompt);
  const auto fork = world.Submit(11, 50, 4, SamePrompt, 10);
  const auto gone = world.Submit(12, 50, 4, SamePrompt, 10);
  world.scheduler.Cancel(12);
  EXPECT_TRUE(gone->ended());
  world.scheduler.Cancel(10);
  world.Run();
  EXPECT_EQ(fork->tokens(), Expected(11, 50, 4));
}

TEST(PrefixHit, GroupsAreChosenByWhatTheyHaveOfThePrompt) {
  SchedulerOptions options;
  options.shape = {.dp = 2, .tp = 1};
  World world(options);
  world.Submit(1, 5, 1);  // so that group 1 is the idle one
  world.Submit(2, 100, 1, SamePrompt);
  world.Run();
  // Group 0 is as idle, but group 1 has the prompt.
  const auto again = world.Submit(3, 100, 40, SamePrompt);
  world.Plan();
  EXPECT_EQ(world.sent[0].groups[1].chunks_size(), 1);
  world.Run();
  EXPECT_EQ(again->outcome().cached_tokens, 96);
}

// --- Who is next ---

struct Order {
  Order() {
    SchedulerOptions options;
    options.max_running = 1;
    world.emplace(options);
    world->Submit(1000, 5, 3);
    world->Plan();
  }
  void Submit(RequestId id, int priority, const std::string& user, int max_tokens = 2) {
    sinks[id] = world->Submit(id, 5, max_tokens, [&](Request& request) {
      request.priority = priority;
      request.user = user;
      request.ignore_eos = true;
    });
  }
  // Ids in the order in which they end.
  std::vector<RequestId> Run() {
    std::vector<RequestId> order;
    for (; !world->sent.empty(); world->Plan()) {
      world->Answer();
      for (const auto& [id, sink] : sinks) {
        if (sink->ended() && std::find(order.begin(), order.end(), id) == order.end()) {
          order.push_back(id);
        }
      }
    }
    return order;
  }
  std::optional<World> world;
  std::map<RequestId, std::shared_ptr<RecordingSink>> sinks;
};

TEST(Admission, TheHigherPriorityIsFirstThenTheEarlier) {
  Order order;
  order.Submit(1, 0, "a");
  order.Submit(2, 5, "a");
  order.Submit(3, -5, "a");
  order.Submit(4, 5, "a");
  EXPECT_THAT(order.Run(), ElementsAre(2, 4, 1, 3));
}

TEST(Admission, UsersTakeTurnsByTokensServedNotByRequestsSent) {
  Order order;
  for (RequestId id = 1; id <= 4; ++id) order.Submit(id, 0, "many");
  order.Submit(5, 0, "few");
  order.Submit(6, 0, "few");
  EXPECT_THAT(order.Run(), ElementsAre(1, 5, 2, 6, 3, 4));
}

TEST(Admission, LongRequestsCountForMoreThanShortOnes) {
  Order order;
  for (RequestId id = 1; id <= 3; ++id) order.Submit(id, 0, "long", 50);
  for (RequestId id = 4; id <= 7; ++id) order.Submit(id, 0, "short", 5);
  EXPECT_THAT(order.Run(), ElementsAre(1, 4, 5, 6, 7, 2, 3));
}

TEST(Admission, TheLowestPriorityIsAdmittedAtTheEighthTurnAtTheLatest) {
  Order order;
  order.Submit(1, -100, "a");
  for (RequestId id = 2; id <= 30; ++id) order.Submit(id, 100, "b");
  const std::vector<RequestId> ended = order.Run();
  const auto place = std::find(ended.begin(), ended.end(), 1) - ended.begin();
  EXPECT_LE(place, kTurnsPerOldest);
  EXPECT_GE(place, 1);
}

// Many short texts arrive without end while every slot is taken by long generations, and the other
// way round.
TEST(Admission, NeitherGenerationNorClassificationStarvesTheOther) {
  SchedulerOptions options;
  options.head_labels = {2};
  options.max_running = 8;
  World world(options, 200, 200);
  RequestId next = 1;
  std::vector<std::shared_ptr<RecordingSink>> generations;
  std::deque<std::shared_ptr<RecordingSink>> texts;
  const auto add_text = [&] {
    texts.push_back(world.Submit(next++, 20, 0, [](Request& request) {
      request.heads = {{.head = 0, .first = 19, .count = 1}};
    }));
  };
  for (int i = 0; i < 12; ++i) generations.push_back(world.Submit(next++, 20, 200, IgnoreEos));
  for (int i = 0; i < 50; ++i) add_text();
  size_t texts_done = 0;
  for (int step = 0; step < 200; ++step) {
    world.Plan();
    world.Answer();
    while (!texts.empty() && texts.front()->ended()) {
      texts.pop_front();
      ++texts_done;
      add_text();
    }
  }
  // One slot of eight serves a text every other step at least.
  EXPECT_GE(texts_done, 90u);
  EXPECT_GE(std::count_if(generations.begin(), generations.end(),
                          [](const auto& sink) { return sink->tokens().size() > 100; }),
            7);
}

// --- Deadlines in the queue ---

TEST(Deadline, ARequestThatWouldWaitPastItIsRefusedAtOnce) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  for (RequestId id = 1; id <= 12; ++id) world.Submit(id, 5, 10, IgnoreEos);
  // 0.1 s for each step: a request takes the slot for about a second.
  for (world.Plan(); world.scheduler.queued() > 2; world.Plan()) {
    world.clock.Advance(absl::Milliseconds(100));
    world.Answer();
  }
  for (RequestId id = 21; id <= 30; ++id) world.Submit(id, 5, 10, IgnoreEos);
  const absl::Time now = world.clock.Now();
  const auto within = [now](absl::Duration left) {
    return [now, left](Request& request) { request.deadline = now + left; };
  };
  const auto hopeless = world.Submit(41, 5, 10, within(absl::Seconds(3)));
  ASSERT_TRUE(hopeless->ended());
  EXPECT_EQ(hopeless->outcome().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(hopeless->outcome().status.message()), HasSubstr("would wait for about"));
  EXPECT_EQ(world.scheduler.counters().requests_refused_early, 1u);
  const auto in_time = world.Submit(42, 5, 10, within(absl::Seconds(60)));
  EXPECT_FALSE(in_time->ended());
  // Somebody who goes before all others need not wait.
  const auto urgent = world.Submit(43, 5, 2, [now](Request& request) {
    request.deadline = now + absl::Seconds(3);
    request.priority = 100;
  });
  EXPECT_FALSE(urgent->ended());
  world.Run();
  EXPECT_TRUE(in_time->outcome().status.ok());
  EXPECT_TRUE(urgent->outcome().status.ok());
}

TEST(Deadline, AQueuedRequestEndsWhenItCanNoLongerBeComputedInTime) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  world.Submit(1, 5, 200, IgnoreEos);
  world.Plan();
  world.Answer();  // steps take 1 ms
  world.Plan();
  const absl::Time start = world.clock.Now();
  const auto waits = world.Submit(2, 5, 51, [start](Request& request) {
    request.ignore_eos = true;
    request.deadline = start + absl::Milliseconds(100);
  });
  ASSERT_FALSE(waits->ended());
  // 51 tokens take 51 steps.
  EXPECT_EQ(world.scheduler.NextDeadline(), start + absl::Milliseconds(49));
  world.clock.Advance(absl::Milliseconds(48));
  world.scheduler.Expire();
  EXPECT_FALSE(waits->ended());
  world.clock.Advance(absl::Milliseconds(1));
  world.scheduler.Expire();
  ASSERT_TRUE(waits->ended());
  EXPECT_EQ(waits->outcome().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(world.scheduler.counters().requests_refused_early, 1u);
}

TEST(Deadline, TheRetryDelayFollowsThePaceOfAdmissions) {
  SchedulerOptions options;
  options.max_running = 1;
  World world(options);
  EXPECT_EQ(world.scheduler.RetryDelay(), absl::Seconds(1));
  for (RequestId id = 1; id <= 40; ++id) world.Submit(id, 5, 10, IgnoreEos);
  for (world.Plan(); world.scheduler.queued() > 16; world.Plan()) {
    world.clock.Advance(absl::Milliseconds(100));
    world.Answer();
  }
  // A request holds the slot for about 11 steps; an eighth of those that wait are two.
  EXPECT_GE(world.scheduler.RetryDelay(), absl::Milliseconds(1800));
  EXPECT_LE(world.scheduler.RetryDelay(), absl::Milliseconds(2600));
}

}  // namespace
}  // namespace conclave::coordinator
