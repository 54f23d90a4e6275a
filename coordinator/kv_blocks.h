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

#include <deque>
#include <vector>

#include "coordinator/block_pool.h"

namespace conclave::coordinator {

inline constexpr int kBlockTokens = 16;

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

// Both pools of one data-parallel group.
struct KvPools {
  BlockPool full;
  BlockPool sliding;
  int window = 1;  // keys a sliding layer sees, the query's own included; at least 1
  // The most one sequence has held at once.
  BlockCount max_per_sequence = {};
};

// What a chunk changes in the slot's block tables, before it runs.
struct BlockDelta {
  std::vector<int> new_full;
  std::vector<int> new_sliding;
  int released_sliding = 0;  // from the front
};

// Borrows the pools, which must outlive it. Owned by the scheduler thread.
class SequenceBlocks {
 public:
  SequenceBlocks() = default;
  ~SequenceBlocks() { Free(); }
  SequenceBlocks(const SequenceBlocks&) = delete;
  SequenceBlocks& operator=(const SequenceBlocks&) = delete;

  // Promises what `tokens` positions in chunks of at most `chunk` can need. False: no room now.
  bool Reserve(KvPools& pools, int tokens, int chunk);

  // Makes positions [start, start + rows) storable. Chunks come in order and without gaps; `chunk`
  // is the longest one still to come, this one included. Positions before the window of `start` are
  // given up.
  BlockDelta Extend(int start, int rows, int chunk);

  // Returns every block and the rest of the promise.
  void Free();

  int full_blocks() const { return static_cast<int>(full_.size()); }
  int sliding_blocks() const { return static_cast<int>(sliding_.size()); }

 private:
  int ReleasePassed(int start);
  void ShrinkSlidingPromise(int chunk);

  KvPools* pools_ = nullptr;
  int tokens_ = 0;
  BlockCount promised_;
  std::vector<int> full_;
  std::deque<int> sliding_;
  int sliding_first_ = 0;  // block number of sliding_.front()
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_KV_BLOCKS_H_
