#include "model/bpe.h"

#include <queue>
#include <utility>

#include "absl/status/status.h"
#include "fmt/format.h"

namespace conclave::model {
namespace {

// Up to this many bytes a scan for the lowest rank beats a heap; all of it is on the stack.
constexpr size_t kShort = 64;

// A pair that merges. Ordered by rank, then by place, so that a min-heap gives the next merge.
struct Candidate {
  uint32_t rank;
  uint32_t at;  // of the left token
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};
using Heap = std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>>;

// A token of a long piece, in a list linked by index.
struct Node {
  int id;
  uint32_t previous;
  uint32_t next;
  Merge merge;  // with `next`
};
constexpr uint32_t kNone = UINT32_MAX;

}  // namespace

absl::StatusOr<Bpe> Bpe::Create(BpeParts parts) {
  std::array<int, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids[static_cast<size_t>(byte)] = parts.vocab.Find(std::string_view(&c, 1));
    if (byte_ids[static_cast<size_t>(byte)] < 0) {
      return absl::InvalidArgumentError(
          fmt::format("the vocabulary has no token for byte 0x{:02X}", byte));
    }
  }
  return Bpe(std::move(parts), byte_ids);
}

Bpe::Bpe(BpeParts parts, const std::array<int, 256>& byte_ids)
    : vocab_(std::move(parts.vocab)),
      merges_(std::move(parts.merges)),
      byte_ids_(byte_ids),
      byte_merges_(256 * 256),
      whole_(static_cast<size_t>(vocab_.size()), 1) {
  for (size_t left = 0; left < 256; ++left) {
    for (size_t right = 0; right < 256; ++right) {
      byte_merges_[left << 8 | right] = merges_.Find(byte_ids_[left], byte_ids_[right]);
    }
  }
  if (!parts.whole_entries) {
    std::vector<int> scratch;
    for (int id = 0; id < vocab_.size(); ++id) {
      whole_[static_cast<size_t>(id)] = MergesTo(id, scratch) ? 1 : 0;
    }
  }
  for (const int id : parts.special_ids) whole_[static_cast<size_t>(id)] = 0;
}

bool Bpe::MergesTo(int id, std::vector<int>& scratch) const {
  scratch.clear();
  if (vocab_.Has(id)) MergeBytes(vocab_.Bytes(id), scratch);
  return scratch.size() == 1 && scratch[0] == id;
}

void Bpe::Encode(std::string_view piece, std::vector<int>& ids) const {
  const int id = vocab_.Find(piece);
  if (id >= 0 && whole_[static_cast<size_t>(id)] != 0) {
    ids.push_back(id);
    return;
  }
  MergeBytes(piece, ids);
}

void Bpe::MergeBytes(std::string_view piece, std::vector<int>& ids) const {
  // Places in a long piece are 32 bits: beyond that (no caller's text is), cut.
  constexpr size_t kLongest = UINT32_MAX - 1;
  for (; piece.size() > kLongest; piece.remove_prefix(kLongest)) {
    MergeLong(piece.substr(0, kLongest), ids);
  }
  piece.size() <= kShort ? MergeShort(piece, ids) : MergeLong(piece, ids);
}

Merge Bpe::FindBytes(std::string_view piece, size_t at) const {
  return byte_merges_[static_cast<size_t>(static_cast<uint8_t>(piece[at])) << 8 |
                      static_cast<uint8_t>(piece[at + 1])];
}

void Bpe::MergeShort(std::string_view piece, std::vector<int>& ids) const {
  std::array<int, kShort> tokens;
  std::array<Merge, kShort> merges;  // of each token with the next; none for the last
  size_t count = piece.size();
  if (count == 0) return;
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
    merges[i] = i + 1 < count ? FindBytes(piece, i) : Merge{};
  }
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == Merge::kNoMerge) break;
    tokens[best] = merges[best].id;
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      tokens[i] = tokens[i + 1];
      merges[i] = merges[i + 1];
    }
    merges[best] = best + 1 < count ? merges_.Find(tokens[best], tokens[best + 1]) : Merge{};
    if (best > 0) merges[best - 1] = merges_.Find(tokens[best - 1], tokens[best]);
  }
  ids.insert(ids.end(), tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(count));
}

void Bpe::MergeLong(std::string_view piece, std::vector<int>& ids) const {
  const auto count = static_cast<uint32_t>(piece.size());
  std::vector<Node> nodes(count);
  std::vector<Candidate> candidates;
  for (uint32_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    nodes[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i == 0 ? kNone : i - 1,
                last ? kNone : i + 1, last ? Merge{} : FindBytes(piece, i)};
    if (nodes[i].merge.rank != Merge::kNoMerge) candidates.push_back({nodes[i].merge.rank, i});
  }
  Heap heap(std::greater<>(), std::move(candidates));
  const auto update = [&](uint32_t at) {
    Node& node = nodes[at];
    node.merge = node.next == kNone ? Merge{} : merges_.Find(node.id, nodes[node.next].id);
    if (node.merge.rank != Merge::kNoMerge) heap.push({node.merge.rank, at});
  };
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Node& left = nodes[best.at];
    // A pair that has changed since left a candidate behind; a token merged away has no merge.
    if (left.merge.rank != best.rank) continue;
    Node& right = nodes[left.next];
    left.id = left.merge.id;
    left.next = right.next;
    right.merge = Merge{};
    if (left.next != kNone) nodes[left.next].previous = best.at;
    update(best.at);
    if (left.previous != kNone) update(left.previous);
  }
  for (uint32_t at = 0; at != kNone; at = nodes[at].next) ids.push_back(nodes[at].id);
}

}  // namespace conclave::model
