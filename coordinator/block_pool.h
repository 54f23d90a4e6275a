#ifndef CONCLAVE_COORDINATOR_BLOCK_POOL_H_
#define CONCLAVE_COORDINATOR_BLOCK_POOL_H_

// KV blocks of one kind (full or sliding) in one data-parallel group. The coordinator counts them;
// the worker stores what is in them.
//
//            Take                 Return, not cached
//   free  -----------> held  ---------------------------> free
//                       ^ |  Return, cached                 ^
//                Share  | +--------------------> idle ------+
//                       +-------------------------+  Forget (evicted)
//
// Several sequences hold one block when they share a prefix. A block that the prefix cache knows
// (`cached`) keeps its content when the last holder returns it: it is idle, and as good as free.

#include <cstdint>
#include <vector>

namespace conclave::coordinator {

// Owned by the scheduler thread.
class BlockPool {
 public:
  // Blocks have the ids [0, total).
  explicit BlockPool(int total);

  // A free block, of which there is one. Lowest ids of those never used first, then last returned
  // first, so that a small load touches little of the memory.
  int Take();
  // One more holder of a block that is held or idle.
  void Share(int block);
  // One holder less.
  void Return(int block);

  // Keeps the content of a held block from now on, or no longer that of a cached one.
  void Remember(int block);
  void Forget(int block);
  bool cached(int block) const { return blocks_[block].cached; }
  // The idle block that was returned longest ago; -1: none.
  int oldest_idle() const { return oldest_; }

  int holders(int block) const { return blocks_[block].holders; }
  int total() const { return static_cast<int>(blocks_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  int idle() const { return idle_; }
  // What a sequence can get: free, or idle and to be evicted.
  int available() const { return free() + idle_; }
  int used() const { return total() - available(); }

 private:
  struct Block {
    int holders = 0;
    bool cached = false;
    bool free = true;
    // Neighbours among the idle, by time of return; -1: none.
    int older = -1;
    int newer = -1;
  };

  void AddIdle(int block);
  void RemoveIdle(int block);
  void AddFree(int block);

  std::vector<Block> blocks_;
  std::vector<int> free_;  // stack
  int idle_ = 0;
  int oldest_ = -1;
  int newest_ = -1;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_BLOCK_POOL_H_
