// What the scheduler itself costs in each step: forming a plan and taking its result, without
// workers and without RPC.
//
//   bazel build //bench:scheduler_step && bazel-bin/bench/scheduler_step
//
// `decode`: all sequences generate, one row each. `turnover`: besides, each lives for 64 tokens, as
// many as run are waiting, and each that ends is replaced; prompts begin alike, so every admission
// looks its prompt up. `pressure`: each lives for 512 tokens, and there are KV blocks for half of
// what they come to, so that sequences are preempted. Processor time of the scheduler's thread.
//
// The floor is what the messages cost without any scheduling: the same plan written into a message
// that keeps its memory, and every token of the result read.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "bench/measure.h"
#include "coordinator/scheduler.h"

namespace conclave::bench {
namespace {

using coordinator::Outcome;
using coordinator::Request;
using coordinator::RequestSink;
using coordinator::TokenEvent;

constexpr double kTargetMicros = 200;
constexpr int kPromptTokens = 100;
constexpr int kContext = 131072;

class CountingSink final : public RequestSink {
 public:
  explicit CountingSink(int& ended) : ended_(ended) {}
  void OnTokens(std::span<const TokenEvent>) override {}
  void OnHeadLogits(int, int, std::span<const float>) override {}
  void OnEnd(const Outcome&) override { ++ended_; }

 private:
  int& ended_;
};

struct Case {
  std::string name;
  int max_tokens = kContext;
  int waiting = 0;
  double blocks_per_sequence = 100;
};

// The answer of a worker that samples the same token always.
internal::v1::StepResult Answer(const internal::v1::StepPlan& plan) {
  internal::v1::StepResult result;
  result.set_step(plan.step());
  for (const internal::v1::Chunk& chunk : plan.chunks()) {
    if (!chunk.sample()) continue;
    internal::v1::Sampled& sampled = *result.add_sampled();
    sampled.set_slot(chunk.slot());
    sampled.set_position(chunk.start_position() +
                         static_cast<uint32_t>(std::max(1, chunk.tokens_size())));
    sampled.set_token(7);
  }
  return result;
}

class Bench {
 public:
  Bench(int sequences, const Case& which) : sequences_(sequences), case_(which) {
    options_.context_length = kContext;
    options_.window = 128;
    options_.vocab_size = 200000;
    options_.max_running = sequences;
    options_.max_step_tokens = sequences + 512;
    scheduler_ = std::make_unique<coordinator::Scheduler>(options_, clock_);
    internal::v1::CacheShape cache;
    cache.set_block_tokens(16);
    cache.set_full_blocks(static_cast<uint32_t>(sequences * which.blocks_per_sequence));
    cache.set_sliding_blocks(static_cast<uint32_t>(sequences) * 26);
    cache.set_max_sequences(static_cast<uint32_t>(sequences));
    scheduler_->BeginEpoch(1, cache);
    for (int i = 0; i < sequences + which.waiting; ++i) Submit();
  }

  // Until every slot is taken and decodes.
  void WarmUp() {
    for (int step = 0; step < 4 * kPromptTokens; ++step) Step();
    micros_.clear();
    floor_micros_.clear();
  }

  void Step() {
    const double begin = ThreadSeconds();
    const coordinator::WorldPlan* plan = scheduler_->NextPlan();
    const double planned = ThreadSeconds();
    if (plan != nullptr) sent_.push_back(plan->groups[0]);
    const internal::v1::StepResult result = Answer(sent_.front());
    sent_.pop_front();
    clock_.Advance(absl::Milliseconds(10));
    const double answered = ThreadSeconds();
    const bool good = scheduler_->OnResult(0, result).ok();
    const double end = ThreadSeconds();
    if (!good) std::abort();
    micros_.push_back(1e6 * (planned - begin + end - answered));
    if (plan != nullptr) floor_micros_.push_back(Floor(plan->groups[0], result));
    for (; ended_ > 0; --ended_) Submit();
  }

  const std::vector<double>& micros() const { return micros_; }
  const std::vector<double>& floor_micros() const { return floor_micros_; }
  const coordinator::SchedulerCounters& counters() const { return scheduler_->counters(); }

 private:
  double Floor(const internal::v1::StepPlan& plan, const internal::v1::StepResult& result) {
    const double begin = ThreadSeconds();
    copy_ = plan;
    uint64_t sum = 0;
    for (const internal::v1::Sampled& sampled : result.sampled()) {
      sum += sampled.slot() + sampled.position() + sampled.token();
    }
    copy_.set_epoch(sum);  // so that the sum is made
    return 1e6 * (ThreadSeconds() - begin);
  }

  void Submit() {
    Request request;
    const auto id = static_cast<int32_t>(++last_id_);
    for (int i = 0; i < kPromptTokens; ++i) request.tokens.push_back(i < 64 ? i : id + i);
    request.max_tokens = case_.max_tokens;
    request.ignore_eos = true;
    request.user = "user " + std::to_string(id % 16);
    request.sink = std::make_shared<CountingSink>(ended_);
    scheduler_->Submit(last_id_, std::move(request));
  }

  const int sequences_;
  const Case case_;
  base::FakeClock clock_;
  coordinator::SchedulerOptions options_;
  std::unique_ptr<coordinator::Scheduler> scheduler_;
  std::deque<internal::v1::StepPlan> sent_;
  uint64_t last_id_ = 0;
  int ended_ = 0;
  std::vector<double> micros_;
  std::vector<double> floor_micros_;
  internal::v1::StepPlan copy_;  // of Floor
};

void Measure(int sequences, int steps, const Case& which) {
  Bench bench(sequences, which);
  bench.WarmUp();
  for (int step = 0; step < steps; ++step) bench.Step();
  const double median = Median(bench.micros());
  const double floor = Median(bench.floor_micros());
  fmt::print("| {} | {} | {} | {:.0f} | {:.0f} | {:.0f} | {:.1f} | {} | {} |\n", which.name,
             sequences, steps, median, Quantile(bench.micros(), 0.99), floor, median / floor,
             bench.counters().preemptions, median < kTargetMicros ? "yes" : "no");
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  CLI::App app("Cost of the scheduler in each step.");
  std::vector<int> sequences = {64, 1000};
  int steps = 2000;
  app.add_option("--sequences", sequences)->delimiter(',');
  app.add_option("--steps", steps)->check(CLI::Range(10, 1000000));
  std::string only;
  app.add_option("--case", only, "decode, turnover or pressure; all if not given");
  CLI11_PARSE(app, argc, argv);
  fmt::print(
      "| case | sequences | steps | median us | p99 us | floor us | median / floor | preemptions | "
      "under {:.0f} us |\n"
      "|---|---|---|---|---|---|---|---|---|\n",
      kTargetMicros);
  for (const int count : sequences) {
    // 100 + 64 tokens are 11 blocks, 100 + 512 are 39.
    const Case cases[] = {
        {.name = "decode", .blocks_per_sequence = 400},
        {.name = "turnover", .max_tokens = 64, .waiting = count, .blocks_per_sequence = 22},
        {.name = "pressure", .max_tokens = 512, .waiting = count, .blocks_per_sequence = 20}};
    for (const Case& one : cases) {
      if (only.empty() || only == one.name) Measure(count, steps, one);
    }
  }
  return 0;
}

}  // namespace
}  // namespace conclave::bench

int main(int argc, char** argv) { return conclave::bench::Main(argc, argv); }
