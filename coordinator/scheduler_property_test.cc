// Random workloads in every legal order of submissions, cancellations, deadlines, answers and lost
// epochs keep what the scheduler promises. The fake ranks fail the test on a plan that a worker
// could not execute: a gap, a slot or block in two places, a window that is not there.

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/clock.h"
#include "coordinator/engine_testing.h"
#include "coordinator/request_limits.h"
#include "coordinator/scheduler.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

constexpr int kVocab = 50;  // small, so that stop ids are met
constexpr int kContext = 120;

class RandomWorkload {
 public:
  explicit RandomWorkload(uint32_t seed)
      : random_(seed), options_(RandomOptions()), scheduler_(options_, clock_) {
    // Few enough that sequences are preempted and blocks evicted.
    cache_.set_full_blocks(Pick(8, 30));
    cache_.set_sliding_blocks(Pick(8, 30));
    cache_.set_max_sequences(options_.max_running);
    BeginEpoch();
  }

  void Run(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFailure(); ++i) Event();
    Drain();
    CheckTheEnd();
  }

 private:
  struct Submitted {
    std::shared_ptr<RecordingSink> sink;
    int prompt = 0;
    int compute_limit = 0;
    int completion_limit = 0;
    bool heads_only = false;
  };

  int Pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(int percent) { return Pick(1, 100) <= percent; }

  SchedulerOptions RandomOptions() {
    SchedulerOptions options;
    options.shape = {.dp = Pick(1, 3), .tp = Pick(1, 2)};
    options.context_length = kContext;
    options.window = Pick(1, 40);
    options.vocab_size = kVocab;
    options.eos_token_ids = {3};
    options.head_labels = {2, 5};
    options.max_step_tokens = Pick(4, 40);
    options.max_running = Pick(1, std::min(6, options.max_step_tokens));
    options.prefill_chunk = Pick(1, 40);
    options.pipeline_depth = Pick(1, 4);
    options.prefix_cache = Chance(75);
    return options;
  }

  void BeginEpoch() {
    scheduler_.BeginEpoch(++epoch_, cache_);
    ranks_.clear();
    sent_.assign(options_.shape.world(), {});
    id_of_slot_.assign(options_.shape.dp, {});
    for (int rank = 0; rank < options_.shape.world(); ++rank) {
      ranks_.emplace_back(
          FakeRank::Shape{.window = options_.window,
                          .vocab_size = kVocab,
                          .head_labels = options_.head_labels,
                          .full_blocks = static_cast<int>(cache_.full_blocks()),
                          .sliding_blocks = static_cast<int>(cache_.sliding_blocks()),
                          .max_sequences = options_.max_running,
                          .max_step_tokens = options_.max_step_tokens,
                          .prompts = &prompts_});
    }
  }

  void Event() {
    const int dice = Pick(1, 100);
    if (dice <= 15) {
      Submit();
    } else if (dice <= 18 && next_id_ > 1) {
      scheduler_.Cancel(Pick(1, static_cast<int>(next_id_) - 1));
    } else if (dice <= 20) {
      clock_.Advance(absl::Milliseconds(Pick(1, 100)));
      scheduler_.Expire();
    } else if (dice <= 55) {
      Plan();
    } else if (dice <= 99) {
      Answer(Pick(0, options_.shape.world() - 1));
    } else if (Chance(20)) {
      scheduler_.FailAll(absl::UnavailableError("lost"));
      BeginEpoch();
    }
  }

  void Submit() {
    Request request;
    const int prompt = Pick(1, 60);
    // Of a few families, whose prompts begin alike.
    const int family = Pick(1, 3);
    const int own = Chance(50) ? prompt : Pick(0, prompt);
    for (int i = 0; i < prompt; ++i) {
      request.tokens.push_back(i < own ? family + i % 7 : Pick(0, kVocab - 1));
    }
    request.priority = Pick(0, 2);
    request.user = Chance(50) ? "a" : "b";
    request.max_tokens = Chance(20) ? 0 : Pick(1, 80);
    request.ignore_eos = Chance(50);
    if (Chance(30)) request.stop_token_ids = {Pick(0, kVocab - 1)};
    if (request.max_tokens == 0 || Chance(10)) {
      const int first = Pick(0, prompt - 1);
      request.heads.push_back(
          {.head = Pick(0, 1), .first = first, .count = Pick(1, prompt - first)});
    }
    if (Chance(10)) request.deadline = clock_.Now() + absl::Milliseconds(Pick(0, 300));
    request.sampling.set_seed(next_id_);
    auto sink = std::make_shared<RecordingSink>();
    request.sink = sink;
    const RequestLimits limits{.context_length = kContext,
                               .window = options_.window,
                               .prefill_chunk = options_.prefill_chunk,
                               .num_heads = 2,
                               .blocks = {static_cast<int>(cache_.full_blocks()),
                                          static_cast<int>(cache_.sliding_blocks())}};
    if (!CheckRequest(request, limits).ok()) return;
    submitted_[next_id_] = {.sink = sink,
                            .prompt = prompt,
                            .compute_limit = ComputeLimit(request, kContext),
                            .completion_limit = CompletionLimit(request, kContext),
                            .heads_only = request.max_tokens == 0};
    prompts_[next_id_] = request.tokens;
    const int forks = Chance(10) ? 3 : 1;
    const RequestId leader = next_id_;
    scheduler_.Submit(next_id_++, request);
    for (int i = 1; i < forks; ++i) {
      submitted_[next_id_] = submitted_[leader];
      submitted_[next_id_].sink = std::make_shared<RecordingSink>();
      prompts_[next_id_] = request.tokens;
      request.sink = submitted_[next_id_].sink;
      request.sampling.set_seed(next_id_);
      scheduler_.Submit(next_id_++, request, leader);
    }
  }

  void Plan() {
    const auto plan = scheduler_.NextPlan();
    if (plan == nullptr) return;
    for (int group = 0; group < options_.shape.dp; ++group) CheckLimits(group, *plan);
    for (int rank = 0; rank < options_.shape.world(); ++rank) {
      sent_[rank].push_back(plan->groups[options_.shape.dp_rank(rank)]);
    }
    EXPECT_LE(scheduler_.plans_in_flight(), options_.pipeline_depth);
  }

  void CheckLimits(int group, const WorldPlan& plan) {
    for (const auto& sequence : plan.groups[group].new_sequences()) {
      id_of_slot_[group][sequence.slot()] = sequence.sampling().seed();
    }
    for (const auto& chunk : plan.groups[group].chunks()) {
      const int end = static_cast<int>(chunk.start_position()) + std::max(1, chunk.tokens_size());
      EXPECT_LE(end, submitted_.at(id_of_slot_[group].at(chunk.slot())).compute_limit);
    }
  }

  void Answer(int rank) {
    if (sent_[rank].empty()) return;
    internal::v1::StepResult result = ranks_[rank].Execute(sent_[rank].front());
    sent_[rank].pop_front();
    if (options_.shape.tp_rank(rank) != 0) {
      result.clear_sampled();
      result.clear_head_logits();
    }
    const absl::Status status = scheduler_.OnResult(rank, result);
    EXPECT_TRUE(status.ok()) << status;
  }

  // Answers in order until nothing is left to do; work that never ends would fail the test.
  void Drain() {
    for (int round = 0; Work() > 0 && round < 1'000'000; ++round) {
      Plan();
      for (int rank = 0; rank < options_.shape.world(); ++rank) Answer(rank);
      if (::testing::Test::HasFailure()) return;
    }
  }

  int Work() const {
    return scheduler_.queued() + scheduler_.running() + scheduler_.plans_in_flight();
  }

  void CheckTheEnd() {
    EXPECT_EQ(scheduler_.queued(), 0);
    EXPECT_EQ(scheduler_.running(), 0);
    for (const auto& group : scheduler_.groups()) {
      EXPECT_EQ(group->pools().full.used(), 0);
      EXPECT_EQ(group->pools().sliding.used(), 0);
    }
    const SchedulerCounters& counters = scheduler_.counters();
    EXPECT_EQ(counters.requests_finished + counters.requests_failed + counters.requests_cancelled,
              submitted_.size());
    for (const auto& [id, request] : submitted_) CheckRequestEnd(id, request);
  }

  void CheckRequestEnd(RequestId id, const Submitted& request) {
    ASSERT_TRUE(request.sink->ended()) << "request " << id;
    const std::vector<int> tokens = request.sink->tokens();
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens[i], FakeToken(id, request.prompt + static_cast<int>(i), kVocab));
    }
    const Outcome outcome = request.sink->outcome();
    EXPECT_EQ(outcome.completion_tokens, static_cast<int>(tokens.size()));
    EXPECT_LE(outcome.completion_tokens, request.completion_limit);
    if (!outcome.status.ok()) return;
    if (outcome.reason == FinishReason::kLength) {
      EXPECT_EQ(outcome.completion_tokens, request.completion_limit);
    }
    EXPECT_EQ(outcome.reason == FinishReason::kHeads,
              request.heads_only && outcome.reason != FinishReason::kCancelled);
  }

  std::mt19937 random_;
  base::FakeClock clock_;
  SchedulerOptions options_;
  internal::v1::CacheShape cache_;
  Scheduler scheduler_;
  uint64_t epoch_ = 0;
  FakeRank::Prompts prompts_;
  std::vector<FakeRank> ranks_;
  std::vector<std::deque<internal::v1::StepPlan>> sent_;   // [world]
  std::vector<std::map<uint32_t, RequestId>> id_of_slot_;  // [dp]
  RequestId next_id_ = 1;
  std::map<RequestId, Submitted> submitted_;
};

class SchedulerProperty : public ::testing::TestWithParam<int> {};

TEST_P(SchedulerProperty, AnyLegalOrderOfEventsKeepsThePromises) {
  for (uint32_t i = 0; i < 30; ++i) {
    const uint32_t seed = GetParam() * 1000 + i;
    SCOPED_TRACE(seed);
    RandomWorkload(seed).Run(1500);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerProperty, ::testing::Range(0, 8));

// Without cancellations the count of computed tokens is exact.
TEST(SchedulerAccounting, TokensComputedAreWhatWasNotCachedPlusCompletionLessOnePlusOverruns) {
  std::mt19937 random(7);
  base::FakeClock clock;
  SchedulerOptions options;
  options.context_length = kContext;
  options.window = 16;
  options.vocab_size = kVocab;
  options.eos_token_ids = {3};
  internal::v1::CacheShape cache;
  cache.set_full_blocks(2000);  // nobody is preempted
  cache.set_sliding_blocks(2000);
  cache.set_max_sequences(options.max_running);
  Scheduler scheduler(options, clock);
  scheduler.BeginEpoch(1, cache);
  FakeRank rank({.window = 16,
                 .vocab_size = kVocab,
                 .head_labels = {},
                 .full_blocks = 2000,
                 .sliding_blocks = 2000,
                 .max_sequences = options.max_running,
                 .max_step_tokens = options.max_step_tokens});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (RequestId id = 1; id <= 100; ++id) {
    Request request;
    request.tokens.assign(1 + random() % 60, 1);
    request.max_tokens = static_cast<int>(1 + random() % 80);
    request.sampling.set_seed(id);
    sinks.push_back(std::make_shared<RecordingSink>());
    request.sink = sinks.back();
    scheduler.Submit(id, std::move(request));
  }
  std::deque<internal::v1::StepPlan> sent;
  do {
    while (auto plan = scheduler.NextPlan()) sent.push_back(plan->groups[0]);
    ASSERT_FALSE(sent.empty());
    ASSERT_TRUE(scheduler.OnResult(0, rank.Execute(sent.front())).ok());
    sent.pop_front();
  } while (scheduler.running() + scheduler.queued() + scheduler.plans_in_flight() > 0);
  uint64_t expected = scheduler.counters().overrun_tokens;
  uint64_t stopped = 0;
  for (const auto& sink : sinks) {
    const Outcome outcome = sink->outcome();
    expected += outcome.prompt_tokens - outcome.cached_tokens + outcome.completion_tokens - 1;
    stopped += outcome.reason == FinishReason::kStop ? 1 : 0;
  }
  EXPECT_EQ(scheduler.counters().tokens_computed, expected);
  EXPECT_EQ(static_cast<uint64_t>(rank.computed()), expected);
  EXPECT_GT(scheduler.counters().overrun_tokens, 0u);
  EXPECT_LE(scheduler.counters().overrun_tokens, stopped);
}

}  // namespace
}  // namespace conclave::coordinator
