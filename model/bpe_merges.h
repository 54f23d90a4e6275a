#ifndef CONCLAVE_MODEL_BPE_MERGES_H_
#define CONCLAVE_MODEL_BPE_MERGES_H_

// Which two neighbouring tokens become which token, and in which order of precedence.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace conclave::model {

struct Merge {
  uint32_t rank = kNoMerge;  // the lowest goes first
  int id = -1;               // of the token that the pair becomes

  static constexpr uint32_t kNoMerge = UINT32_MAX;
};

// A flat hash table of pairs, one cache line a lookup. Filled by one thread, then immutable and
// safe to share.
class BpeMerges {
 public:
  // The last call for a pair counts.
  void Set(int left, int right, Merge merge);
  // A Merge of rank kNoMerge when the pair does not merge.
  Merge Find(int left, int right) const {
    const Slot& slot = slots_[Probe(KeyOf(left, right))];
    return slot.key == kFree ? Merge{} : slot.merge;
  }
  size_t size() const { return used_; }

 private:
  struct Slot {
    uint64_t key = kFree;
    Merge merge;
  };
  static constexpr uint64_t kFree = UINT64_MAX;

  static uint64_t KeyOf(int left, int right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t Probe(uint64_t key) const {
    // Two rounds: the key's halves are small numbers in a row.
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
    size_t at = hash >> shift_;
    while (slots_[at].key != key && slots_[at].key != kFree) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  void Grow();

  std::vector<Slot> slots_ =
      std::vector<Slot>(size_t{1} << 10);  // a power of two, half full at most
  int shift_ = 64 - 10;                    // 64 - log2(slots_.size())
  size_t used_ = 0;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_BPE_MERGES_H_
