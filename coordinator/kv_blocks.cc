#include "coordinator/kv_blocks.h"

#include <algorithm>

#include "base/check.h"

namespace conclave::coordinator {

int BlocksOf(int tokens) { return tokens / kBlockTokens + (tokens % kBlockTokens != 0); }

int PeakSlidingBlocks(int tokens, int chunk, int window) {
  const int live = window - 1 + std::min(chunk, tokens);
  // n consecutive positions lie in at most ceil((n - 1) / 16) + 1 blocks.
  return std::min(BlocksOf(tokens), BlocksOf(live - 1) + 1);
}

BlockCount PeakBlocks(int tokens, int chunk, int window) {
  return {.full = BlocksOf(tokens), .sliding = PeakSlidingBlocks(tokens, chunk, window)};
}

int KvPools::TakeFull() {
  if (full.free() == 0) cache.EvictFull();
  return full.Take();
}

int KvPools::TakeSliding() {
  if (sliding.free() == 0) cache.EvictSliding();
  return sliding.Take();
}

void SequenceBlocks::Begin(KvPools& pools, const PrefixCache::Hit& hit, bool caches) {
  CONCLAVE_CHECK(pools_ == nullptr);
  pools_ = &pools;
  caches_ = caches;
  for (int block : hit.full) pools.full.Share(block);
  for (int block : hit.sliding) pools.sliding.Share(block);
  full_ = hit.full;
  sliding_ = hit.sliding;
  first_sliding_ = hit.first_sliding;
  entered_ = full_blocks();
  last_entered_ = hit.last;
}

// Blocks, from the first position on, that can be had for a chunk that begins at `start`.
BlockCount SequenceBlocks::Reach(int start) const {
  const int passed = std::clamp(FirstNeeded(start) - first_sliding_, 0, sliding_blocks());
  const auto returned =
      std::count_if(sliding_.begin(), sliding_.begin() + passed,
                    [this](int block) { return pools_->sliding.holders(block) == 1; });
  return {.full = full_blocks() + pools_->full.available(),
          .sliding = first_sliding_ + sliding_blocks() + static_cast<int>(returned) +
                     pools_->sliding.available()};
}

int SequenceBlocks::RowsInReach(int start, int wanted) const {
  const BlockCount reach = Reach(start);
  return std::clamp(std::min(reach.full, reach.sliding) * kBlockTokens - start, 0, wanted);
}

BlockCount SequenceBlocks::Lacking(int start) const {
  if (start < covered()) return {};
  const BlockCount reach = Reach(start);
  return {.full = reach.full * kBlockTokens <= start ? 1 : 0,
          .sliding = reach.sliding * kBlockTokens <= start ? 1 : 0};
}

BlockDelta SequenceBlocks::Change(int start, int rows) {
  CONCLAVE_CHECK(pools_ != nullptr && rows >= 1);
  BlockDelta delta;
  delta.released_sliding = ReleasePassed(start);
  const int end = BlocksOf(start + rows);
  while (full_blocks() < end) {
    full_.push_back(pools_->TakeFull());
    delta.new_full.push_back(full_.back());
  }
  while (first_sliding_ + sliding_blocks() < end) {
    sliding_.push_back(pools_->TakeSliding());
    delta.new_sliding.push_back(sliding_.back());
  }
  BlockCount& most = pools_->max_per_sequence;
  most.full = std::max(most.full, full_blocks());
  most.sliding = std::max(most.sliding, sliding_blocks());
  return delta;
}

int SequenceBlocks::ReleasePassed(int start) {
  const int released = std::clamp(FirstNeeded(start) - first_sliding_, 0, sliding_blocks());
  if (released == 0) return 0;
  const auto end = sliding_.begin() + released;
  for (auto block = sliding_.begin(); block != end; ++block) {
    pools_->cache.PassSliding(*block);
    pools_->sliding.Return(*block);
  }
  sliding_.erase(sliding_.begin(), end);
  first_sliding_ += released;
  return released;
}

void SequenceBlocks::Enter(std::span<const int32_t> tokens, int prompt) {
  const int whole = static_cast<int>(tokens.size()) / kBlockTokens;
  while (caches_ && entered_ < whole) {
    const int held = entered_ - first_sliding_;
    const int sliding = held >= 0 ? sliding_[held] : -1;
    // A parent that is gone has taken with it what would lead here.
    caches_ = pools_->cache.Enter(last_entered_, tokens.subspan(entered_ * kBlockTokens),
                                  full_[entered_], sliding);
    if (!caches_) return;
    if (sliding >= 0 && IsCheckpoint(entered_, prompt)) pools_->cache.Keep(sliding);
    ++entered_;
  }
}

// The block lies in the window before a place at which another sequence is likely to go on: the end
// of the prompt (or, since its last token is always computed, the block before), or a multiple of
// kCheckpointTokens.
bool SequenceBlocks::IsCheckpoint(int block, int prompt) const {
  const int start = block * kBlockTokens;
  for (const int place :
       {(start / kCheckpointTokens + 1) * kCheckpointTokens, prompt / kBlockTokens * kBlockTokens,
        (prompt - 1) / kBlockTokens * kBlockTokens}) {
    if (start < place && FirstNeeded(place) <= block) return true;
  }
  return false;
}

// From the end: of blocks that nobody needs now, the last ones of a prefix are evicted first.
void SequenceBlocks::Free() {
  if (pools_ == nullptr) return;
  // Another sequence may go on where this one ends: a conversation's next turn.
  const int last_window = FirstNeeded(entered_ * kBlockTokens) - first_sliding_;
  for (int i = 0; i < sliding_blocks(); ++i) {
    if (i >= last_window) {
      pools_->cache.Keep(sliding_[i]);
    } else {
      pools_->cache.PassSliding(sliding_[i]);
    }
  }
  for (auto block = full_.rbegin(); block != full_.rend(); ++block) pools_->full.Return(*block);
  for (auto block = sliding_.rbegin(); block != sliding_.rend(); ++block) {
    pools_->sliding.Return(*block);
  }
  full_.clear();
  sliding_.clear();
  first_sliding_ = 0;
  entered_ = 0;
  last_entered_ = {};
  pools_ = nullptr;
}

BlockCount SequenceBlocks::Exclusive() const {
  const auto count = [](const BlockPool& pool, const auto& blocks) {
    return static_cast<int>(std::count_if(blocks.begin(), blocks.end(),
                                          [&pool](int block) { return pool.holders(block) == 1; }));
  };
  return {.full = count(pools_->full, full_), .sliding = count(pools_->sliding, sliding_)};
}

}  // namespace conclave::coordinator
