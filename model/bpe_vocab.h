#ifndef CONCLAVE_MODEL_BPE_VOCAB_H_
#define CONCLAVE_MODEL_BPE_VOCAB_H_

// The byte strings of a vocabulary: id -> bytes, and bytes -> id by a flat hash table.
//
// Most pieces of real text are vocabulary entries of a few bytes, so a lookup is made to touch one
// cache line: an entry of up to 7 bytes *is* its key, a longer one is verified in the byte pool.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace conclave::model {

// Ids are bounded, so that a bad file cannot make us allocate without limit.
inline constexpr int kMaxTokenId = (1 << 21) - 1;

// Filled by one thread, then immutable and safe to share.
class BpeVocab {
 public:
  // INVALID_ARGUMENT when the id is out of range or has an entry, or `bytes` is empty or known.
  absl::Status Add(std::string_view bytes, int64_t id);
  // As Add, for an entry that Find never returns (and so may equal another's bytes): a special
  // token.
  absl::Status AddHidden(std::string_view bytes, int64_t id);

  // The id of exactly these bytes, or -1.
  int Find(std::string_view bytes) const;
  // Empty for an id without an entry. Valid until the next Add.
  std::string_view Bytes(int id) const;
  bool Has(int id) const { return !Bytes(id).empty(); }

  // One past the largest id with an entry.
  int size() const { return static_cast<int>(spans_.size()); }
  // Bytes of the longest entry that Find knows.
  size_t longest() const { return longest_; }

 private:
  struct Span {
    uint32_t offset = 0;  // in pool_
    uint32_t length = 0;
  };
  struct Slot {
    uint64_t key = 0;  // 0: free
    int id = 0;
  };

  absl::Status AddBytes(std::string_view bytes, int64_t id);
  size_t SlotOf(uint64_t key) const { return ((key ^ key >> 29) * 0x9E3779B97F4A7C15u) >> shift_; }
  // The slot that holds `bytes` or, when there is none, the free one where they belong.
  size_t Probe(uint64_t key, std::string_view bytes) const;
  void Grow();

  std::string pool_;         // the entries' bytes, one after another
  std::vector<Span> spans_;  // [size]
  std::vector<Slot> slots_ =
      std::vector<Slot>(size_t{1} << 10);  // a power of two, half full at most
  int shift_ = 64 - 10;                    // 64 - log2(slots_.size())
  size_t used_ = 0;
  size_t longest_ = 0;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_BPE_VOCAB_H_
