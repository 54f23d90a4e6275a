#ifndef CONCLAVE_MODEL_BPE_H_
#define CONCLAVE_MODEL_BPE_H_

// Byte-pair encoding of one piece of text: a whole entry is taken as it is; else single bytes are
// merged, always the pair of lowest rank, the leftmost among equals, until no pair merges.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/bpe_merges.h"
#include "model/bpe_vocab.h"

namespace conclave::model {

struct BpeParts {
  BpeVocab vocab;
  BpeMerges merges;
  // Whether an entry is taken even where its merges would not lead to it (tokenizer.json's
  // `ignore_merges`, and what .tiktoken vocabularies mean).
  bool whole_entries = false;
  // Entries that no text becomes: special tokens.
  std::vector<int> special_ids;
};

// Immutable; every method is thread-safe.
class Bpe {
 public:
  // INVALID_ARGUMENT when one of the 256 bytes has no token.
  static absl::StatusOr<Bpe> Create(BpeParts parts);

  // Appends the tokens of `piece`, any bytes. O(n log n).
  void Encode(std::string_view piece, std::vector<int>& ids) const;

  int ByteId(uint8_t byte) const { return byte_ids_[byte]; }
  const BpeVocab& vocab() const { return vocab_; }

 private:
  Bpe(BpeParts parts, const std::array<int, 256>& byte_ids);

  void MergeBytes(std::string_view piece, std::vector<int>& ids) const;
  void MergeShort(std::string_view piece, std::vector<int>& ids) const;
  void MergeLong(std::string_view piece, std::vector<int>& ids) const;
  bool MergesTo(int id, std::vector<int>& scratch) const;
  Merge FindBytes(std::string_view piece, size_t at) const;

  BpeVocab vocab_;
  BpeMerges merges_;
  std::array<int, 256> byte_ids_;
  std::vector<Merge> byte_merges_;  // [256 * 256] of single bytes: half of all lookups
  std::vector<uint8_t> whole_;      // [vocab size] whether a piece that is this entry is this token
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_BPE_H_
