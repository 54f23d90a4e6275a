#ifndef CONCLAVE_COORDINATOR_PREFIX_CACHE_H_
#define CONCLAVE_COORDINATOR_PREFIX_CACHE_H_

// Which tokens the KV blocks of one data-parallel group hold, so that a sequence that begins with
// the same tokens need not compute them again.
//
// A tree: a node stands for 16 tokens and, through its parents, for all tokens before them. A node
// is one full-attention block, and may have the sliding-window block of the same positions. A
// prefix of n tokens is reusable when the tree has all its nodes, and their sliding blocks as far
// back as the window of token n reaches:
//
//   node            0     1     2     3     4     5
//   full block      7     3     8     2     5     9
//   sliding block   -     -     4     1     -     6        window = 20: 64 tokens can be reused, 96
//                               |<----- 20 ---->|          cannot
//
// Tokens are compared, not only their hashes. Only whole blocks are shared: the tokens after the
// last one are computed again, which needs no copy of a block that is partly full.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "coordinator/block_pool.h"

namespace conclave::coordinator {

inline constexpr int kBlockTokens = 16;

// Owned by the scheduler thread. Borrows the pools.
class PrefixCache {
 public:
  // A node at one moment; what was evicted since is told apart.
  struct Place {
    int node = -1;  // -1: before the first token
    uint32_t generation = 0;
  };

  struct Hit {
    int tokens = 0;  // a multiple of kBlockTokens
    std::vector<int> full;
    std::vector<int> sliding;
    int first_sliding = 0;  // block number of sliding[0]
    Place last;
  };

  // `window`: keys a sliding layer sees, the query's own included.
  PrefixCache(BlockPool& full, BlockPool& sliding, int window);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest reusable prefix of `tokens`, of `limit` tokens at most. Holds nothing.
  Hit Find(std::span<const int32_t> tokens, int limit) const;

  // Enters one block's tokens as a child of `parent`; the blocks are held by the caller, -1: none.
  // What the tree has already stays as it is, and the caller's copy remains its own. False, and
  // `parent` unchanged, when the parent has been evicted; otherwise `parent` becomes the node.
  bool Enter(Place& parent, std::span<const int32_t> tokens, int full_block, int sliding_block);

  // The sliding block is worth keeping after its sequence has moved on.
  void Keep(int sliding_block);
  // A holder gives the sliding block back because its window has passed: forgotten unless kept.
  void PassSliding(int sliding_block);

  // Frees an idle block of the kind, the least recently used, and what can no longer be reached
  // without it. There is one.
  void EvictFull();
  void EvictSliding();

  uint64_t evicted_blocks() const { return evicted_; }
  int nodes() const { return count_; }

 private:
  using BlockOfTokens = std::array<int32_t, kBlockTokens>;
  struct Key {
    int parent = -1;
    BlockOfTokens tokens = {};
    bool operator==(const Key&) const = default;
  };
  // A node has the id of its full block.
  struct Node {
    Key key;
    uint32_t generation = 0;  // rises each time the node is removed
    int sliding = -1;
    int first_child = -1;
    int next_sibling = -1;
    int previous_sibling = -1;
    int next_in_bucket = -1;
  };
  // Of a sliding block.
  struct Attachment {
    int node = -1;
    bool kept = false;
  };

  static Key MakeKey(int parent, std::span<const int32_t> tokens);
  size_t Bucket(const Key& key) const;
  int FindNode(const Key& key) const;  // -1: none
  void AddNode(int node, const Key& key);
  void RemoveNode(int node);
  void AttachSliding(int node, int sliding_block);
  void DetachSliding(int node);
  void Unlink(int node);
  void RemoveTree(int node);

  BlockPool& full_;
  BlockPool& sliding_;
  const int window_;
  std::vector<Node> nodes_;  // [full blocks]
  std::vector<int>
      buckets_;  // [a power of two, few nodes each] first node of each, by hash; -1: none
  std::vector<Attachment> attachments_;  // [sliding blocks]
  std::vector<int> pending_;             // of RemoveTree
  int count_ = 0;                        // nodes in the tree
  uint64_t evicted_ = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_PREFIX_CACHE_H_
