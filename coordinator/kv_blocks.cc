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

bool SequenceBlocks::Reserve(KvPools& pools, int tokens, int chunk) {
  CONCLAVE_CHECK(pools_ == nullptr && tokens >= 1 && chunk >= 1);
  const BlockCount peak = PeakBlocks(tokens, chunk, pools.window);
  if (!pools.full.Reserve(peak.full)) return false;
  if (!pools.sliding.Reserve(peak.sliding)) {
    pools.full.CancelReservation(peak.full);
    return false;
  }
  pools_ = &pools;
  tokens_ = tokens;
  promised_ = peak;
  full_.reserve(peak.full);
  return true;
}

BlockDelta SequenceBlocks::Extend(int start, int rows, int chunk) {
  CONCLAVE_CHECK(pools_ != nullptr && rows >= 1 && rows <= chunk && start + rows <= tokens_);
  BlockDelta delta;
  delta.released_sliding = ReleasePassed(start);
  ShrinkSlidingPromise(chunk);
  const int end = BlocksOf(start + rows);
  while (full_blocks() < end) {
    full_.push_back(pools_->full.Take());
    delta.new_full.push_back(full_.back());
  }
  while (sliding_first_ + sliding_blocks() < end) {
    sliding_.push_back(pools_->sliding.Take());
    delta.new_sliding.push_back(sliding_.back());
  }
  BlockCount& most = pools_->max_per_sequence;
  most.full = std::max(most.full, full_blocks());
  most.sliding = std::max(most.sliding, sliding_blocks());
  return delta;
}

int SequenceBlocks::ReleasePassed(int start) {
  const int first_needed = std::max(0, start - pools_->window + 1) / kBlockTokens;
  int released = 0;
  while (sliding_first_ < first_needed && !sliding_.empty()) {
    pools_->sliding.Return(sliding_.front());
    sliding_.pop_front();
    ++sliding_first_;
    ++released;
  }
  return released;
}

void SequenceBlocks::ShrinkSlidingPromise(int chunk) {
  const int needed = PeakSlidingBlocks(tokens_, chunk, pools_->window);
  if (needed >= promised_.sliding) return;
  pools_->sliding.CancelReservation(promised_.sliding - needed);
  promised_.sliding = needed;
}

void SequenceBlocks::Free() {
  if (pools_ == nullptr) return;
  for (int block : full_) pools_->full.Return(block);
  for (int block : sliding_) pools_->sliding.Return(block);
  full_.clear();
  sliding_.clear();
  pools_->full.CancelReservation(promised_.full);
  pools_->sliding.CancelReservation(promised_.sliding);
  pools_ = nullptr;
}

}  // namespace conclave::coordinator
