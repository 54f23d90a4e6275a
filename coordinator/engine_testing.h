#ifndef CONCLAVE_COORDINATOR_ENGINE_TESTING_H_
#define CONCLAVE_COORDINATOR_ENGINE_TESTING_H_

// Fakes of both ends of the engine: a sink that checks what every sink may rely on, and a worker
// that "computes" plans the way a real one would, so that a plan it could not execute is seen.

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "coordinator/engine.h"
#include "coordinator/kv_blocks.h"
#include "gtest/gtest.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Records one request's results. Thread-safe: tests wait on it while the engine's thread calls.
class RecordingSink : public RequestSink {
 public:
  void OnTokens(std::span<const TokenEvent> tokens) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(ends_, 0) << "a token after the end";
    for (const TokenEvent& event : tokens) tokens_.push_back(event.token);
  }

  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(ends_, 0) << "log-probabilities after the end";
    EXPECT_TRUE(tokens_.empty()) << "log-probabilities of the prompt after a generated token";
    prompt_.insert(prompt_.end(), logprobs.begin(), logprobs.end());
  }

  void OnHeadLogits(int head, int first_position, std::span<const float> logits) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(ends_, 0) << "logits after the end";
    pieces_.push_back({head, first_position, {logits.begin(), logits.end()}});
  }

  void OnEnd(const Outcome& outcome) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(++ends_, 1) << "ended twice";
    outcome_ = outcome;
  }

  struct Piece {
    int head = 0;
    int first_position = 0;
    std::vector<float> logits;
  };

  std::vector<int> tokens() const {
    absl::MutexLock lock(&mutex_);
    return tokens_;
  }
  std::vector<PromptLogprob> prompt() const {
    absl::MutexLock lock(&mutex_);
    return prompt_;
  }
  std::vector<Piece> pieces() const {
    absl::MutexLock lock(&mutex_);
    return pieces_;
  }
  bool ended() const {
    absl::MutexLock lock(&mutex_);
    return ends_ > 0;
  }
  Outcome outcome() const {
    absl::MutexLock lock(&mutex_);
    return outcome_;
  }
  // False when it has not ended after `timeout`.
  bool WaitForEnd(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(this, &RecordingSink::Ended), timeout);
  }
  bool WaitForTokens(int count, absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [this, count] { return static_cast<int>(tokens_.size()) >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&enough), timeout);
  }

 private:
  bool Ended() const { return ends_ > 0; }

  mutable absl::Mutex mutex_;  // guards all below
  std::vector<int> tokens_;
  std::vector<PromptLogprob> prompt_;
  std::vector<Piece> pieces_;
  int ends_ = 0;
  Outcome outcome_;
};

// The token a fake worker samples at a position of a sequence that began with `seed`.
inline int FakeToken(uint64_t seed, int position, int vocab_size) {
  const uint64_t mixed = (seed * 1000003 + position) * 0x9E3779B97F4A7C15ull;
  return static_cast<int>((mixed >> 33) % vocab_size);
}

// Executes the plans of one rank against its own tables, and fails the test on any plan that a
// worker could not execute: a gap, an unknown slot, a missing or doubly used block, a lost window.
class FakeRank {
 public:
  struct Shape {
    int window = 16;
    int vocab_size = 1000;
    std::vector<int> head_labels;
    int full_blocks = 0;
    int sliding_blocks = 0;
    int max_sequences = 0;
    int max_step_tokens = 0;
  };
  explicit FakeRank(Shape shape) : shape_(std::move(shape)) {}

  // Executes `plan`; the answer as tp rank 0 gives it.
  internal::v1::StepResult Execute(const internal::v1::StepPlan& plan) {
    EXPECT_EQ(plan.step(), next_step_++) << "a gap in the plans";
    for (uint32_t slot : plan.freed_slots()) {
      EXPECT_EQ(slots_.erase(slot), 1u) << "freed an unknown slot";
    }
    for (const auto& sequence : plan.new_sequences()) {
      EXPECT_LT(static_cast<int>(sequence.slot()), shape_.max_sequences);
      const bool fresh = slots_.emplace(sequence.slot(), Slot{sequence.sampling().seed()}).second;
      EXPECT_TRUE(fresh) << "slot " << sequence.slot() << " reused before it was freed";
    }
    internal::v1::StepResult result;
    result.set_epoch(plan.epoch());
    result.set_step(plan.step());
    result.set_step_ns(1'000'000);
    int rows = 0;
    for (const auto& chunk : plan.chunks()) rows += ExecuteChunk(chunk, result);
    EXPECT_LE(rows, shape_.max_step_tokens);
    CheckBlocks();
    computed_ += rows;
    return result;
  }

  // A new epoch continues: what is resident stays, plans are numbered anew.
  void Continue() { next_step_ = 0; }

  int64_t computed() const { return computed_; }

 private:
  struct Slot {
    uint64_t seed = 0;
    int position = 0;
    bool has_sample = false;
    std::vector<uint32_t> full = {};
    std::vector<uint32_t> sliding = {};
    int sliding_first = 0;
  };

  int ExecuteChunk(const internal::v1::Chunk& chunk, internal::v1::StepResult& result) {
    const auto entry = slots_.find(chunk.slot());
    if (entry == slots_.end()) {
      ADD_FAILURE() << "chunk for unknown slot " << chunk.slot();
      return 0;
    }
    Slot& slot = entry->second;
    const int start = static_cast<int>(chunk.start_position());
    EXPECT_EQ(start, slot.position) << "gap in positions";
    EXPECT_TRUE(!chunk.tokens().empty() || slot.has_sample) << "no token on the device";
    const int rows = std::max(1, chunk.tokens_size());
    ExtendTables(chunk, start, rows, slot);
    for (const auto& want : chunk.heads()) AddLogits(chunk, want, result);
    if (!chunk.logprobs().targets().empty()) AddTargets(chunk, result);
    slot.position = start + rows;
    if (chunk.sample()) {
      slot.has_sample = true;
      auto* sampled = result.add_sampled();
      sampled->set_slot(chunk.slot());
      sampled->set_position(slot.position);
      sampled->set_token(FakeToken(slot.seed, slot.position, shape_.vocab_size));
    }
    return rows;
  }

  void ExtendTables(const internal::v1::Chunk& chunk, int start, int rows, Slot& slot) {
    const size_t released = chunk.released_sliding_blocks();
    ASSERT_LE(released, slot.sliding.size());
    slot.sliding.erase(slot.sliding.begin(), slot.sliding.begin() + released);
    slot.sliding_first += static_cast<int>(released);
    for (uint32_t block : chunk.new_full_blocks()) slot.full.push_back(block);
    for (uint32_t block : chunk.new_sliding_blocks()) slot.sliding.push_back(block);
    const int end = BlocksOf(start + rows);
    EXPECT_GE(static_cast<int>(slot.full.size()), end);
    EXPECT_GE(slot.sliding_first + static_cast<int>(slot.sliding.size()), end);
    EXPECT_LE(slot.sliding_first, std::max(0, start - shape_.window + 1) / kBlockTokens);
  }

  void AddLogits(const internal::v1::Chunk& chunk, const internal::v1::HeadWant& want,
                 internal::v1::StepResult& result) {
    auto* logits = result.add_head_logits();
    logits->set_slot(chunk.slot());
    logits->set_head(want.head());
    logits->set_first_position(chunk.start_position() + want.first());
    for (uint32_t row = 0; row < want.count(); ++row) {
      for (int label = 0; label < shape_.head_labels[want.head()]; ++label) {
        logits->add_logits(static_cast<float>(logits->first_position() + row) * 10 + label);
      }
    }
  }

  // A target's log-probability is minus its id, its position is the one most likely token.
  void AddTargets(const internal::v1::Chunk& chunk, internal::v1::StepResult& result) {
    auto* logprobs = result.add_target_logprobs();
    logprobs->set_slot(chunk.slot());
    logprobs->set_first_position(chunk.start_position() + chunk.logprobs().first());
    for (int row = 0; row < chunk.logprobs().targets_size(); ++row) {
      logprobs->add_logprobs(-static_cast<float>(chunk.logprobs().targets(row)));
      for (uint32_t i = 0; i < chunk.logprobs().top(); ++i) {
        logprobs->add_top_tokens(logprobs->first_position() + row);
        logprobs->add_top_logprobs(-1);
      }
    }
  }

  // No block belongs to two sequences.
  void CheckBlocks() const {
    std::set<uint32_t> full;
    std::set<uint32_t> sliding;
    for (const auto& [id, slot] : slots_) {
      for (uint32_t block : slot.full) {
        EXPECT_LT(static_cast<int>(block), shape_.full_blocks);
        EXPECT_TRUE(full.insert(block).second) << "full block " << block << " in two places";
      }
      for (uint32_t block : slot.sliding) {
        EXPECT_LT(static_cast<int>(block), shape_.sliding_blocks);
        EXPECT_TRUE(sliding.insert(block).second) << "sliding block " << block << " in two places";
      }
    }
  }

  Shape shape_;
  std::map<uint32_t, Slot> slots_;
  uint64_t next_step_ = 0;
  int64_t computed_ = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ENGINE_TESTING_H_
