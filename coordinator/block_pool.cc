#include "coordinator/block_pool.h"

#include "base/check.h"

namespace conclave::coordinator {

BlockPool::BlockPool(int total) : blocks_(total) {
  free_.reserve(total);
  for (int block = total - 1; block >= 0; --block) free_.push_back(block);
}

int BlockPool::Take() {
  CONCLAVE_CHECK(!free_.empty());
  const int block = free_.back();
  free_.pop_back();
  blocks_[block].free = false;
  blocks_[block].holders = 1;
  return block;
}

void BlockPool::Share(int block) {
  CONCLAVE_CHECK(block >= 0 && block < total() && !blocks_[block].free);
  if (blocks_[block].holders++ == 0) RemoveIdle(block);
}

void BlockPool::Return(int block) {
  CONCLAVE_CHECK(block >= 0 && block < total() && blocks_[block].holders > 0);
  if (--blocks_[block].holders > 0) return;
  if (blocks_[block].cached) {
    AddIdle(block);
  } else {
    AddFree(block);
  }
}

void BlockPool::Remember(int block) {
  CONCLAVE_CHECK(blocks_[block].holders > 0 && !blocks_[block].cached);
  blocks_[block].cached = true;
}

void BlockPool::Forget(int block) {
  CONCLAVE_CHECK(blocks_[block].cached);
  blocks_[block].cached = false;
  if (blocks_[block].holders > 0) return;
  RemoveIdle(block);
  AddFree(block);
}

void BlockPool::AddFree(int block) {
  blocks_[block].free = true;
  free_.push_back(block);
}

void BlockPool::AddIdle(int block) {
  blocks_[block].older = newest_;
  blocks_[block].newer = -1;
  (newest_ < 0 ? oldest_ : blocks_[newest_].newer) = block;
  newest_ = block;
  ++idle_;
}

void BlockPool::RemoveIdle(int block) {
  const Block& gone = blocks_[block];
  (gone.older < 0 ? oldest_ : blocks_[gone.older].newer) = gone.newer;
  (gone.newer < 0 ? newest_ : blocks_[gone.newer].older) = gone.older;
  --idle_;
}

}  // namespace conclave::coordinator
