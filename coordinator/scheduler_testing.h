#ifndef CONCLAVE_COORDINATOR_SCHEDULER_TESTING_H_
#define CONCLAVE_COORDINATOR_SCHEDULER_TESTING_H_

// A scheduler with a clock that stands still and ranks that answer when they are told to.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "coordinator/engine_testing.h"
#include "coordinator/scheduler.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {

inline constexpr int kVocab = 1000;
inline constexpr int kContext = 256;

struct World {
  explicit World(SchedulerOptions changed = {}, int full_blocks = 64, int sliding_blocks = 64)
      : options(Complete(changed)), scheduler(options, clock) {
    cache.set_block_tokens(kBlockTokens);
    cache.set_full_blocks(full_blocks);
    cache.set_sliding_blocks(sliding_blocks);
    cache.set_max_sequences(options.max_running);
    Begin(1);
  }

  static SchedulerOptions Complete(SchedulerOptions options) {
    options.context_length = kContext;
    options.window = 16;
    options.vocab_size = kVocab;
    return options;
  }

  void Begin(uint64_t epoch) {
    scheduler.BeginEpoch(epoch, cache);
    sent.clear();
    ranks.clear();
    for (int rank = 0; rank < options.shape.world(); ++rank) {
      ranks.emplace_back(FakeRank::Shape{.window = options.window,
                                         .vocab_size = kVocab,
                                         .head_labels = options.head_labels,
                                         .full_blocks = static_cast<int>(cache.full_blocks()),
                                         .sliding_blocks = static_cast<int>(cache.sliding_blocks()),
                                         .max_sequences = options.max_running,
                                         .max_step_tokens = options.max_step_tokens,
                                         .prompts = &prompts});
    }
  }

  // Prompts differ from their first token on.
  std::shared_ptr<RecordingSink> Submit(RequestId id, int prompt, int max_tokens,
                                        const std::function<void(Request&)>& change = nullptr,
                                        std::optional<RequestId> leader = std::nullopt) {
    auto sink = std::make_shared<RecordingSink>();
    Request request;
    for (int i = 0; i < prompt; ++i) {
      request.tokens.push_back((static_cast<int>(id) + i) % kVocab);
    }
    request.max_tokens = max_tokens;
    request.sampling.set_seed(id);
    request.sink = sink;
    if (change != nullptr) change(request);
    prompts[request.sampling.seed()] = request.tokens;
    scheduler.Submit(id, std::move(request), leader);
    return sink;
  }

  // Sends plans until the scheduler has no more for now.
  int Plan() {
    int plans = 0;
    while (auto plan = scheduler.NextPlan()) {
      sent.push_back(*plan);
      ++plans;
    }
    return plans;
  }

  // Every rank executes and answers the oldest plan.
  void Answer() {
    const WorldPlan plan = sent.front();
    sent.pop_front();
    for (int rank = 0; rank < options.shape.world(); ++rank) {
      internal::v1::StepResult result =
          ranks[rank].Execute(plan.groups[options.shape.dp_rank(rank)]);
      if (options.shape.tp_rank(rank) != 0) {
        result.clear_sampled();
        result.clear_head_logits();
      }
      const absl::Status status = scheduler.OnResult(rank, result);
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  // Until nothing is left to do.
  void Run() {
    for (Plan(); !sent.empty(); Plan()) Answer();
  }

  int used_full() const {
    int used = 0;
    for (const auto& group : scheduler.groups()) used += group->pools().full.used();
    return used;
  }
  int used_sliding() const {
    int used = 0;
    for (const auto& group : scheduler.groups()) used += group->pools().sliding.used();
    return used;
  }

  base::FakeClock clock;
  SchedulerOptions options;
  internal::v1::CacheShape cache;
  Scheduler scheduler;
  FakeRank::Prompts prompts;
  std::vector<FakeRank> ranks;
  std::deque<WorldPlan> sent;
};

inline std::vector<int> Expected(RequestId seed, int prompt, int count) {
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(FakeToken(seed, prompt + i, kVocab));
  return tokens;
}

inline void IgnoreEos(Request& request) { request.ignore_eos = true; }

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SCHEDULER_TESTING_H_
