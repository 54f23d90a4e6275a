#ifndef CONCLAVE_COORDINATOR_ENGINE_TESTING_H_
#define CONCLAVE_COORDINATOR_ENGINE_TESTING_H_

// Fakes of both ends of the engine: a sink that checks what every sink may rely on, and a worker
// that "computes" plans the way a real one would, so that a plan it could not execute is seen.

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
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
// worker could not execute: a gap, an unknown slot, a missing or doubly used block, a lost window,
// a shared block that is written, or that holds other tokens than the sequence has.
class FakeRank {
 public:
  // Prompts by seed: of the sequences whose content is checked.
  using Prompts = std::map<uint64_t, std::vector<int32_t>>;
  struct Shape {
    int window = 16;
    int vocab_size = 1000;
    std::vector<int> head_labels;
    int full_blocks = 0;
    int sliding_blocks = 0;
    int max_sequences = 0;
    int max_step_tokens = 0;
    const Prompts* prompts = nullptr;
  };
  explicit FakeRank(Shape shape)
      : shape_(std::move(shape)), full_(shape_.full_blocks), sliding_(shape_.sliding_blocks) {}

  // Executes `plan`; the answer as tp rank 0 gives it.
  internal::v1::StepResult Execute(const internal::v1::StepPlan& plan) {
    EXPECT_EQ(plan.step(), next_step_++) << "a gap in the plans";
    for (uint32_t id : plan.freed_slots()) Free(id);
    for (const auto& sequence : plan.new_sequences()) Introduce(sequence);
    for (const auto& chunk : plan.chunks()) Release(chunk);
    for (const auto& chunk : plan.chunks()) Append(chunk);
    internal::v1::StepResult result;
    result.set_epoch(plan.epoch());
    result.set_step(plan.step());
    result.set_step_ns(1'000'000);
    int rows = 0;
    for (const auto& chunk : plan.chunks()) rows += ExecuteChunk(chunk, result);
    EXPECT_LE(rows, shape_.max_step_tokens);
    computed_ += rows;
    return result;
  }

  // A new epoch continues: what is resident stays, plans are numbered anew.
  void Continue() { next_step_ = 0; }

  int64_t computed() const { return computed_; }

 private:
  // What keys and values depend on: all tokens up to a position.
  using Content = uint64_t;
  struct Block {
    int holders = 0;
    std::array<Content, kBlockTokens> content = {};
  };
  struct Slot {
    uint64_t seed = 0;
    int position = 0;
    Content content = 0;  // of position - 1
    int sampled = -1;
    std::vector<uint32_t> full = {};
    std::vector<uint32_t> sliding = {};
    int sliding_first = 0;
  };

  static Content Next(Content before, int token) {
    return (before + static_cast<Content>(token) + 1) * 0x9E3779B97F4A7C15ull ^ (before >> 29);
  }

  Slot* Find(uint32_t id) {
    const auto entry = slots_.find(id);
    if (entry != slots_.end()) return &entry->second;
    ADD_FAILURE() << "unknown slot " << id;
    return nullptr;
  }

  void Free(uint32_t id) {
    Slot* slot = Find(id);
    if (slot == nullptr) return;
    for (uint32_t block : slot->full) --full_[block].holders;
    for (uint32_t block : slot->sliding) --sliding_[block].holders;
    slots_.erase(id);
  }

  void Introduce(const internal::v1::NewSequence& sequence) {
    EXPECT_LT(static_cast<int>(sequence.slot()), shape_.max_sequences);
    const auto [entry, fresh] =
        slots_.emplace(sequence.slot(), Slot{.seed = sequence.sampling().seed()});
    EXPECT_TRUE(fresh) << "slot " << sequence.slot() << " reused before it was freed";
    Slot& slot = entry->second;
    slot.position = static_cast<int>(sequence.cached_tokens());
    slot.full.assign(sequence.full_blocks().begin(), sequence.full_blocks().end());
    slot.sliding.assign(sequence.sliding_blocks().begin(), sequence.sliding_blocks().end());
    slot.sliding_first = static_cast<int>(sequence.first_sliding_block());
    for (uint32_t block : slot.full) ++full_[block].holders;
    for (uint32_t block : slot.sliding) ++sliding_[block].holders;
    EXPECT_EQ(slot.position, static_cast<int>(slot.full.size()) * kBlockTokens);
    EXPECT_EQ(slot.full.size(), slot.sliding_first + slot.sliding.size());
    if (slot.position == 0) return;
    slot.content = full_[slot.full.back()].content.back();
    CheckContent(slot);
  }

  void Release(const internal::v1::Chunk& chunk) {
    Slot* slot = Find(chunk.slot());
    if (slot == nullptr) return;
    const size_t released = chunk.released_sliding_blocks();
    ASSERT_LE(released, slot->sliding.size());
    for (size_t i = 0; i < released; ++i) --sliding_[slot->sliding[i]].holders;
    slot->sliding.erase(slot->sliding.begin(), slot->sliding.begin() + released);
    slot->sliding_first += static_cast<int>(released);
  }

  void Append(const internal::v1::Chunk& chunk) {
    Slot* slot = Find(chunk.slot());
    if (slot == nullptr) return;
    const auto append = [](const auto& added, std::vector<Block>& blocks,
                           std::vector<uint32_t>& table) {
      for (uint32_t block : added) {
        ASSERT_LT(block, blocks.size());
        EXPECT_EQ(blocks[block].holders++, 0) << "block " << block << " in two places";
        blocks[block].content = {};
        table.push_back(block);
      }
    };
    append(chunk.new_full_blocks(), full_, slot->full);
    append(chunk.new_sliding_blocks(), sliding_, slot->sliding);
  }

  int ExecuteChunk(const internal::v1::Chunk& chunk, internal::v1::StepResult& result) {
    Slot* slot = Find(chunk.slot());
    if (slot == nullptr) return 0;
    const int start = static_cast<int>(chunk.start_position());
    EXPECT_EQ(start, slot->position) << "gap in positions";
    EXPECT_TRUE(!chunk.tokens().empty() || slot->sampled >= 0) << "no token on the device";
    const int rows = std::max(1, chunk.tokens_size());
    const int end = BlocksOf(start + rows);
    EXPECT_GE(static_cast<int>(slot->full.size()), end);
    EXPECT_GE(slot->sliding_first + static_cast<int>(slot->sliding.size()), end);
    EXPECT_LE(slot->sliding_first, std::max(0, start - shape_.window + 1) / kBlockTokens);
    if (::testing::Test::HasFailure()) return rows;  // the tables may be too short to go on
    CheckWindow(*slot);
    for (const auto& want : chunk.heads()) AddLogits(chunk, want, result);
    if (!chunk.logprobs().targets().empty()) AddTargets(chunk, result);
    for (int row = 0; row < rows; ++row) {
      Write(*slot, chunk.tokens().empty() ? slot->sampled : static_cast<int>(chunk.tokens(row)));
    }
    CheckContent(*slot);
    slot->sampled = -1;
    if (chunk.sample()) {
      slot->sampled = FakeToken(slot->seed, slot->position, shape_.vocab_size);
      auto* sampled = result.add_sampled();
      sampled->set_slot(chunk.slot());
      sampled->set_position(slot->position);
      sampled->set_token(slot->sampled);
    }
    return rows;
  }

  void Write(Slot& slot, int token) {
    slot.content = Next(slot.content, token);
    const int block = slot.position / kBlockTokens;
    Block& full = full_[slot.full[block]];
    Block& sliding = sliding_[slot.sliding[block - slot.sliding_first]];
    EXPECT_EQ(full.holders, 1) << "a shared block is written";
    EXPECT_EQ(sliding.holders, 1) << "a shared block is written";
    full.content[slot.position % kBlockTokens] = slot.content;
    sliding.content[slot.position % kBlockTokens] = slot.content;
    ++slot.position;
  }

  // What the sliding layers of the next row see is what the full layers have of the same tokens.
  void CheckWindow(const Slot& slot) const {
    for (int at = std::max(0, slot.position - shape_.window + 1); at < slot.position; ++at) {
      const int block = at / kBlockTokens;
      EXPECT_EQ(sliding_[slot.sliding[block - slot.sliding_first]].content[at % kBlockTokens],
                full_[slot.full[block]].content[at % kBlockTokens])
          << "position " << at;
    }
  }

  // All positions hold the sequence's own tokens.
  void CheckContent(const Slot& slot) const {
    if (shape_.prompts == nullptr || !shape_.prompts->contains(slot.seed)) return;
    const std::vector<int32_t>& prompt = shape_.prompts->at(slot.seed);
    Content content = 0;
    for (int at = 0; at < slot.position; ++at) {
      content = Next(content, at < static_cast<int>(prompt.size())
                                  ? prompt[at]
                                  : FakeToken(slot.seed, at, shape_.vocab_size));
      EXPECT_EQ(full_[slot.full[at / kBlockTokens]].content[at % kBlockTokens], content)
          << "seed " << slot.seed << ", position " << at;
    }
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

  Shape shape_;
  std::vector<Block> full_;
  std::vector<Block> sliding_;
  std::map<uint32_t, Slot> slots_;
  uint64_t next_step_ = 0;
  int64_t computed_ = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ENGINE_TESTING_H_
