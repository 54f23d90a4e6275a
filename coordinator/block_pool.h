#ifndef CONCLAVE_COORDINATOR_BLOCK_POOL_H_
#define CONCLAVE_COORDINATOR_BLOCK_POOL_H_

// KV blocks of one kind (full or sliding) in one data-parallel group. The coordinator counts them;
// the worker stores what is in them.
//
// A sequence reserves, when it is admitted, the most blocks it can ever hold at once, and takes and
// returns them one by one as it goes. So a Take never fails and nothing is ever preempted.

#include <cstdint>
#include <vector>

namespace conclave::coordinator {

// Owned by the scheduler thread.
class BlockPool {
 public:
  // Blocks have the ids [0, total).
  explicit BlockPool(int total);

  // Promises `count` blocks, or returns false and changes nothing.
  bool Reserve(int count);
  // Gives back a promise of `count` blocks that are not held.
  void CancelReservation(int count);

  // A block of an earlier promise. Lowest ids of those never used first, then last returned first,
  // so that a small load touches little of the cache.
  int Take();
  void Return(int block);

  int total() const { return total_; }
  int used() const { return total_ - static_cast<int>(free_.size()); }
  int reserved() const { return reserved_; }

 private:
  int total_;
  int reserved_ = 0;         // promised, taken or not: used() <= reserved_ <= total_
  std::vector<int> free_;    // stack
  std::vector<bool> taken_;  // [total]
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_BLOCK_POOL_H_
