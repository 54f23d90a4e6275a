#include "coordinator/block_pool.h"

#include "base/check.h"

namespace conclave::coordinator {

BlockPool::BlockPool(int total) : total_(total), taken_(total, false) {
  CONCLAVE_CHECK(total >= 0);
  free_.reserve(total);
  for (int block = total - 1; block >= 0; --block) free_.push_back(block);
}

bool BlockPool::Reserve(int count) {
  CONCLAVE_CHECK(count >= 0);
  if (count > total_ - reserved_) return false;
  reserved_ += count;
  return true;
}

void BlockPool::CancelReservation(int count) {
  CONCLAVE_CHECK(count >= 0 && reserved_ - count >= used());
  reserved_ -= count;
}

int BlockPool::Take() {
  CONCLAVE_CHECK(used() < reserved_);
  const int block = free_.back();
  free_.pop_back();
  taken_[block] = true;
  return block;
}

void BlockPool::Return(int block) {
  CONCLAVE_CHECK(block >= 0 && block < total_ && taken_[block]);
  taken_[block] = false;
  free_.push_back(block);
}

}  // namespace conclave::coordinator
