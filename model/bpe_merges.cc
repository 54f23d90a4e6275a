#include "model/bpe_merges.h"

#include <utility>

namespace conclave::model {

void BpeMerges::Set(int left, int right, Merge merge) {
  if (used_ * 2 >= slots_.size()) Grow();
  const uint64_t key = KeyOf(left, right);
  Slot& slot = slots_[Probe(key)];
  if (slot.key == kFree) ++used_;
  slot = {key, merge};
}

void BpeMerges::Grow() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2));
  --shift_;
  for (const Slot& slot : old) {
    if (slot.key != kFree) slots_[Probe(slot.key)] = slot;
  }
}

}  // namespace conclave::model
