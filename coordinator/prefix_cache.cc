#include "coordinator/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/hash/hash.h"
#include "base/check.h"

namespace conclave::coordinator {

PrefixCache::PrefixCache(BlockPool& full, BlockPool& sliding, int window)
    : full_(full),
      sliding_(sliding),
      window_(window),
      nodes_(full.total()),
      buckets_(2 * std::bit_ceil(static_cast<unsigned>(full.total())), -1),
      attachments_(sliding.total()) {}

// Salted: nobody can choose prompts that collide.
size_t PrefixCache::Bucket(const Key& key) const {
  return absl::HashOf(key.parent, key.tokens) & (buckets_.size() - 1);
}

int PrefixCache::FindNode(const Key& key) const {
  int node = buckets_[Bucket(key)];
  while (node >= 0 && nodes_[node].key != key) node = nodes_[node].next_in_bucket;
  return node;
}

void PrefixCache::AddNode(int node, const Key& key) {
  nodes_[node].key = key;
  nodes_[node].next_in_bucket = std::exchange(buckets_[Bucket(key)], node);
  ++count_;
}

void PrefixCache::RemoveNode(int node) {
  int* link = &buckets_[Bucket(nodes_[node].key)];
  while (*link != node) link = &nodes_[*link].next_in_bucket;
  *link = nodes_[node].next_in_bucket;
  nodes_[node] = {.key = {}, .generation = nodes_[node].generation + 1};
  --count_;
}

PrefixCache::Key PrefixCache::MakeKey(int parent, std::span<const int32_t> tokens) {
  CONCLAVE_CHECK(tokens.size() >= kBlockTokens);
  Key key{.parent = parent};
  std::copy_n(tokens.begin(), kBlockTokens, key.tokens.begin());
  return key;
}

PrefixCache::Hit PrefixCache::Find(std::span<const int32_t> tokens, int limit) const {
  const int most = std::min(limit, static_cast<int>(tokens.size())) / kBlockTokens;
  std::vector<int> path;
  int with_sliding = 0;  // consecutive nodes at the end of the path that have their sliding block
  int blocks = 0;        // of the longest reusable prefix until now
  for (int parent = -1; static_cast<int>(path.size()) < most;) {
    parent = FindNode(MakeKey(parent, tokens.subspan(path.size() * kBlockTokens)));
    if (parent < 0) break;
    path.push_back(parent);
    with_sliding = nodes_[parent].sliding < 0 ? 0 : with_sliding + 1;
    const int end = static_cast<int>(path.size());
    const int first_needed = std::max(0, end * kBlockTokens - window_ + 1) / kBlockTokens;
    if (with_sliding >= end - first_needed) blocks = end;
  }
  Hit hit;
  if (blocks == 0) return hit;
  path.resize(blocks);
  hit.tokens = blocks * kBlockTokens;
  hit.first_sliding = std::max(0, hit.tokens - window_ + 1) / kBlockTokens;
  for (int i = hit.first_sliding; i < blocks; ++i) hit.sliding.push_back(nodes_[path[i]].sliding);
  hit.last = {.node = path.back(), .generation = nodes_[path.back()].generation};
  hit.full = std::move(path);
  return hit;
}

bool PrefixCache::Enter(Place& parent, std::span<const int32_t> tokens, int full_block,
                        int sliding_block) {
  if (parent.node >= 0 && nodes_[parent.node].generation != parent.generation) return false;
  const Key key = MakeKey(parent.node, tokens);
  int node = FindNode(key);
  if (node < 0) {
    node = full_block;
    full_.Remember(node);
    AddNode(node, key);
    if (parent.node >= 0) {
      const int sibling = std::exchange(nodes_[parent.node].first_child, node);
      nodes_[node].next_sibling = sibling;
      if (sibling >= 0) nodes_[sibling].previous_sibling = node;
    }
  }
  if (sliding_block >= 0) AttachSliding(node, sliding_block);
  parent = {.node = node, .generation = nodes_[node].generation};
  return true;
}

void PrefixCache::AttachSliding(int node, int sliding_block) {
  if (nodes_[node].sliding >= 0 || attachments_[sliding_block].node >= 0) return;
  sliding_.Remember(sliding_block);
  nodes_[node].sliding = sliding_block;
  attachments_[sliding_block].node = node;
}

void PrefixCache::DetachSliding(int node) {
  const int block = std::exchange(nodes_[node].sliding, -1);
  attachments_[block] = {};
  sliding_.Forget(block);
}

void PrefixCache::Keep(int sliding_block) {
  if (attachments_[sliding_block].node >= 0) attachments_[sliding_block].kept = true;
}

void PrefixCache::PassSliding(int sliding_block) {
  const Attachment& attachment = attachments_[sliding_block];
  if (attachment.node < 0 || attachment.kept || sliding_.holders(sliding_block) > 1) return;
  DetachSliding(attachment.node);
}

void PrefixCache::EvictFull() {
  const int node = full_.oldest_idle();
  CONCLAVE_CHECK(node >= 0);
  Unlink(node);
  RemoveTree(node);
}

void PrefixCache::EvictSliding() {
  const int block = sliding_.oldest_idle();
  CONCLAVE_CHECK(block >= 0);
  DetachSliding(attachments_[block].node);
  ++evicted_;
}

void PrefixCache::Unlink(int node) {
  const Node& gone = nodes_[node];
  if (gone.previous_sibling >= 0) {
    nodes_[gone.previous_sibling].next_sibling = gone.next_sibling;
  } else if (gone.key.parent >= 0) {
    nodes_[gone.key.parent].first_child = gone.next_sibling;
  }
  if (gone.next_sibling >= 0) {
    nodes_[gone.next_sibling].previous_sibling = gone.previous_sibling;
  }
}

// Blocks of the tree that are held stay with their holders; nobody finds them any more.
void PrefixCache::RemoveTree(int root) {
  pending_.assign({root});
  while (!pending_.empty()) {
    const int node = pending_.back();
    pending_.pop_back();
    for (int child = nodes_[node].first_child; child >= 0; child = nodes_[child].next_sibling) {
      pending_.push_back(child);
    }
    if (nodes_[node].sliding >= 0) DetachSliding(node);
    RemoveNode(node);
    full_.Forget(node);
    ++evicted_;
  }
}

}  // namespace conclave::coordinator
