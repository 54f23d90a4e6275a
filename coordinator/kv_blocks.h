#ifndef CONCLAVE_COORDINATOR_KV_BLOCKS_H_
#define CONCLAVE_COORDINATOR_KV_BLOCKS_H_

// The KV blocks of one sequence, in both kinds of layers. Full-attention layers keep every
// position. Sliding layers keep only what the window of a later token can reach:
//
//   block        0        1        2        3        4
//            |--------|--------|--------|--------|--------|
//                          ^ start - window + 1     ^ start ... start + rows - 1  (the next chunk)
//             released  held     held     held     new
//
// so a sequence past the window holds a constant number of sliding blocks, whatever its length.
// Whole blocks are entered in the prefix cache as soon as a plan computes them; of the sliding
// ones, those at the end of the prompt and before every 1,024th token stay there when the window
// has passed.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "coordinator/block_pool.h"
#include "coordinator/prefix_cache.h"

namespace conclave::coordinator {

// Tokens between two places at which the sliding blocks of a long prompt are kept.
inline constexpr int kCheckpointTokens = 1024;

// Blocks of each kind.
struct BlockCount {
  int full = 0;
  int sliding = 0;
};

// Blocks that `tokens` consecutive positions from position 0 take.
int BlocksOf(int tokens);

// The most sliding blocks held at once by a sequence of `tokens` positions computed in chunks of at
// most `chunk`: the window before a chunk's first token, and the chunk.
int PeakSlidingBlocks(int tokens, int chunk, int window);

// The most blocks a sequence of `tokens` positions ever holds.
BlockCount PeakBlocks(int tokens, int chunk, int window);

// Both pools of one data-parallel group, and what is in them.
struct KvPools {
  KvPools(int full_blocks, int sliding_blocks, int sliding_window)
      : full(full_blocks),
        sliding(sliding_blocks),
        window(sliding_window),
        cache(full, sliding, sliding_window) {}

  // A block that nobody holds, if need be one that the cache gives up. There is one.
  int TakeFull();
  int TakeSliding();

  BlockPool full;
  BlockPool sliding;
  const int window;  // keys a sliding layer sees, the query's own included; at least 1
  PrefixCache cache;
  BlockCount max_per_sequence = {};  // the most one sequence has held at once
};

// What a chunk changes in the slot's block tables, before it runs.
struct BlockDelta {
  std::vector<int> new_full;
  std::vector<int> new_sliding;
  int released_sliding = 0;  // from the front
};

// Owned by the scheduler thread.
class SequenceBlocks {
 public:
  SequenceBlocks() = default;
  ~SequenceBlocks() { Free(); }
  SequenceBlocks(const SequenceBlocks&) = delete;
  SequenceBlocks& operator=(const SequenceBlocks&) = delete;

  // Begins to hold blocks of `pools`, which is borrowed, with those of `hit`. `caches`: whole
  // blocks may be entered in the cache.
  void Begin(KvPools& pools, const PrefixCache::Hit& hit, bool caches);

  // Positions [0, covered) are storable without a new block.
  int covered() const {
    return std::min(full_blocks(), first_sliding_ + sliding_blocks()) * kBlockTokens;
  }
  // Of `wanted` rows from `start` on, those that Extend could make storable now; 0: not one.
  int RowsThatFit(int start, int wanted) const {
    return start + wanted <= covered() ? wanted : RowsInReach(start, wanted);
  }
  // The blocks for which not one fits: 0 or 1 of each kind.
  BlockCount Lacking(int start) const;

  // Makes positions [start, start + rows) storable. Chunks come in order and without gaps; the
  // blocks it needs are available. Positions before the window of `start` are given up.
  BlockDelta Extend(int start, int rows) {
    const bool stays = start + rows <= covered() && FirstNeeded(start) <= first_sliding_;
    return stays ? BlockDelta() : Change(start, rows);
  }

  // Whether `tokens` have a whole block that Enter would enter.
  bool CanEnter(int tokens) const { return caches_ && entered_ < tokens / kBlockTokens; }
  // Enters the whole blocks of `tokens` in the cache, all of which are computed by plans already
  // made. Others are likely to go on after the first `prompt` of them.
  void Enter(std::span<const int32_t> tokens, int prompt);

  // Returns every block; those in the cache stay there until they are needed.
  void Free();

  // Blocks that nobody else holds: what Free would make available.
  BlockCount Exclusive() const;

  int full_blocks() const { return static_cast<int>(full_.size()); }
  int sliding_blocks() const { return static_cast<int>(sliding_.size()); }
  const std::vector<int>& full() const { return full_; }
  const std::vector<int>& sliding() const { return sliding_; }
  int first_sliding() const { return first_sliding_; }

 private:
  BlockCount Reach(int start) const;
  int RowsInReach(int start, int wanted) const;
  BlockDelta Change(int start, int rows);
  int ReleasePassed(int start);
  // The first block that a token at `start` sees in sliding layers.
  int FirstNeeded(int start) const {
    return std::max(0, start - pools_->window + 1) / kBlockTokens;
  }
  bool IsCheckpoint(int block, int prompt) const;

  KvPools* pools_ = nullptr;
  std::vector<int> full_;
  std::vector<int> sliding_;  // few: the window and a chunk
  int first_sliding_ = 0;     // block number of sliding_.front()
  bool caches_ = false;
  int entered_ = 0;  // blocks in the cache, from the first on
  PrefixCache::Place last_entered_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_KV_BLOCKS_H_
