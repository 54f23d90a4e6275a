#include "coordinator/kv_blocks.h"

#include <algorithm>
#include <deque>
#include <numeric>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using Tokens = std::vector<int32_t>;

// `count` tokens, `first` and on.
Tokens Range(int first, int count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Tokens Join(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(3);
  const int first = pool.Take();
  const int second = pool.Take();
  EXPECT_NE(first, second);
  EXPECT_EQ(pool.used(), 2);
  pool.Return(first);
  EXPECT_EQ(pool.available(), 2);
  EXPECT_EQ(pool.Take(), first);
}

TEST(BlockPool, ASharedBlockIsFreeWhenTheLastHolderReturnsIt) {
  BlockPool pool(1);
  const int block = pool.Take();
  pool.Share(block);
  pool.Return(block);
  EXPECT_EQ(pool.used(), 1);
  pool.Return(block);
  EXPECT_EQ(pool.free(), 1);
}

TEST(BlockPool, CachedBlocksGoIdleOldestFirstAndCanBeTakenUpAgain) {
  BlockPool pool(3);
  for (int i = 0; i < 3; ++i) pool.Remember(pool.Take());
  for (int block : {1, 0, 2}) pool.Return(block);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.oldest_idle(), 1);
  pool.Share(0);  // from the middle
  EXPECT_EQ(pool.used(), 1);
  pool.Forget(1);
  EXPECT_EQ(pool.oldest_idle(), 2);
  EXPECT_EQ(pool.Take(), 1);
  pool.Forget(0);  // held: stays so, and is free afterwards
  pool.Return(0);
  EXPECT_EQ(pool.free(), 1);
  pool.Forget(2);
  EXPECT_EQ(pool.oldest_idle(), -1);
}

TEST(BlockPoolDeathTest, TakingWhatIsNotThereIsABrokenInvariant) {
  BlockPool pool(1);
  pool.Take();
  EXPECT_DEATH(pool.Take(), "broken invariant");
}

TEST(BlockPoolDeathTest, ReturningABlockTwiceIsABrokenInvariant) {
  BlockPool pool(2);
  const int block = pool.Take();
  pool.Take();
  pool.Return(block);
  EXPECT_DEATH(pool.Return(block), "broken invariant");
}

// Computes all of `tokens` in chunks, as a sequence does whose prompt they are. The first
// `blocks.full_blocks()` blocks came from the cache.
void Compute(SequenceBlocks& blocks, const Tokens& tokens, int chunk) {
  const int length = static_cast<int>(tokens.size());
  for (int start = blocks.full_blocks() * kBlockTokens; start < length;) {
    const int rows = std::min(chunk, length - start);
    ASSERT_EQ(blocks.RowsThatFit(start, rows), rows);
    blocks.Extend(start, rows);
    start += rows;
    blocks.Enter(std::span<const int32_t>(tokens).first(start), length);
  }
}

void ComputeAndFree(KvPools& pools, const Tokens& tokens, int chunk = 64) {
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, true);
  Compute(blocks, tokens, chunk);
}

int Hit(const KvPools& pools, const Tokens& tokens) {
  return pools.cache.Find(tokens, static_cast<int>(tokens.size()) - 1).tokens;
}

TEST(SequenceBlocks, PastTheWindowASequenceHoldsAConstantNumberOfSlidingBlocks) {
  constexpr int kWindow = 32;
  KvPools pools(100, 100, kWindow);
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, false);
  for (int position = 0; position < 1000; ++position) {
    blocks.Extend(position, 1);
    EXPECT_EQ(blocks.full_blocks(), position / 16 + 1);
    // 32 positions lie in two blocks when aligned and in three otherwise.
    const int expected = position < kWindow ? position / 16 + 1 : position % 16 == 15 ? 2 : 3;
    EXPECT_EQ(blocks.sliding_blocks(), expected) << "at position " << position;
  }
  EXPECT_EQ(pools.max_per_sequence.sliding, 3);
  EXPECT_EQ(pools.max_per_sequence.full, 63);
}

TEST(SequenceBlocks, FreeingReturnsEverything) {
  KvPools pools(10, 10, 16);
  {
    SequenceBlocks blocks;
    blocks.Begin(pools, {}, true);
    blocks.Extend(0, 40);
    blocks.Extend(40, 40);
    EXPECT_EQ(pools.full.used(), 5);
  }
  EXPECT_EQ(pools.full.used(), 0);
  EXPECT_EQ(pools.sliding.used(), 0);
}

// For every window, chunk and length: the chunk's window is covered, nothing older is kept, and no
// more is held than CheckRequest takes into account.
TEST(SequenceBlocks, EveryChunkFindsItsWindowWhateverTheChunking) {
  for (int window : {1, 2, 15, 16, 17, 128}) {
    for (int chunk : {1, 7, 16, 64, 100}) {
      for (int length : {1, 16, 17, 300}) {
        const BlockCount peak = PeakBlocks(length, chunk, window);
        KvPools pools(peak.full, peak.sliding, window);
        SequenceBlocks blocks;
        blocks.Begin(pools, {}, true);
        const Tokens tokens = Range(0, length);
        int first_block = 0;
        std::deque<int> table;
        for (int start = 0; start < length; start += chunk) {
          const int rows = std::min(chunk, length - start);
          ASSERT_EQ(blocks.RowsThatFit(start, rows), rows);
          const BlockDelta delta = blocks.Extend(start, rows);
          blocks.Enter(std::span<const int32_t>(tokens).first(start + rows), length);
          for (int i = 0; i < delta.released_sliding; ++i) table.pop_front();
          first_block += delta.released_sliding;
          for (int block : delta.new_sliding) table.push_back(block);
          const int oldest_key = std::max(0, start - window + 1);
          EXPECT_EQ(first_block, oldest_key / 16);
          EXPECT_EQ(first_block + static_cast<int>(table.size()), BlocksOf(start + rows));
          EXPECT_EQ(std::set<int>(table.begin(), table.end()).size(), table.size());
        }
      }
    }
  }
}

TEST(SequenceBlocks, TellsWhatIsLackingAndHowMuchFits) {
  KvPools pools(3, 2, 64);
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, true);
  EXPECT_EQ(blocks.RowsThatFit(0, 100), 32);
  blocks.Extend(0, 20);
  EXPECT_EQ(blocks.RowsThatFit(20, 100), 12);
  EXPECT_EQ(blocks.Lacking(20).sliding, 0);
  blocks.Extend(20, 12);
  EXPECT_EQ(blocks.RowsThatFit(32, 100), 0);
  EXPECT_EQ(blocks.Lacking(32).full, 0);
  EXPECT_EQ(blocks.Lacking(32).sliding, 1);
}

TEST(PrefixCache, TheSameTokensAreFoundAsFarAsWholeBlocksGo) {
  KvPools pools(20, 20, 16);
  const Tokens prompt = Range(0, 40);
  EXPECT_EQ(Hit(pools, prompt), 0);
  ComputeAndFree(pools, prompt);
  EXPECT_EQ(Hit(pools, prompt), 32);
  EXPECT_EQ(Hit(pools, Join(prompt, Range(500, 30))), 32);
  EXPECT_EQ(Hit(pools, Join(Range(1, 1), Range(1, 39))), 0);
  EXPECT_EQ(pools.full.used(), 0);
  EXPECT_EQ(pools.full.idle(), 2);
}

// The last token is always computed: of a prompt of whole blocks the last one is not used, and the
// sliding blocks for going on before it are there.
TEST(PrefixCache, TheLastTokenIsNeverTakenFromTheCache) {
  KvPools pools(20, 20, 16);
  const Tokens prompt = Range(0, 64);
  ComputeAndFree(pools, prompt);
  EXPECT_EQ(Hit(pools, prompt), 48);
  EXPECT_EQ(Hit(pools, Join(prompt, {7})), 64);
}

TEST(PrefixCache, AHitSharesTheBlocksAndTheWindowBeforeIt) {
  KvPools pools(20, 20, 20);
  const Tokens prompt = Range(0, 70);
  ComputeAndFree(pools, prompt);
  const PrefixCache::Hit hit = pools.cache.Find(prompt, 69);
  EXPECT_EQ(hit.tokens, 64);
  EXPECT_EQ(hit.full.size(), 4u);
  EXPECT_EQ(hit.first_sliding, 2);  // position 64 sees from 45 on
  EXPECT_EQ(hit.sliding.size(), 2u);
  SequenceBlocks one;
  SequenceBlocks two;
  one.Begin(pools, hit, true);
  two.Begin(pools, hit, true);
  EXPECT_EQ(pools.full.used(), 4);
  EXPECT_EQ(one.Exclusive().full, 0);
  Compute(one, prompt, 16);
  Compute(two, prompt, 16);
  EXPECT_EQ(pools.full.used(), 6);  // each its own tail
  EXPECT_EQ(one.full().front(), two.full().front());
  EXPECT_NE(one.full().back(), two.full().back());
}

// Full layers have all 40 tokens, the sliding ones only their end.
TEST(PrefixCache, WithoutTheWindowsSlidingBlocksThereIsNoHit) {
  KvPools pools(40, 40, 16);
  const Tokens prompt = Range(0, 320);
  ComputeAndFree(pools, prompt, 16);
  EXPECT_EQ(Hit(pools, prompt), 304);
  Tokens other(prompt.begin(), prompt.begin() + 160);
  EXPECT_EQ(Hit(pools, Join(other, {9, 9})), 0);
}

TEST(PrefixCache, LongPromptsCanBeLeftAtEveryCheckpoint) {
  KvPools pools(400, 400, 128);
  const Tokens prompt = Range(0, 3000);
  ComputeAndFree(pools, prompt, 256);
  const auto hit_after = [&](int common) {
    return Hit(pools, Join(Tokens(prompt.begin(), prompt.begin() + common), Range(9000, 50)));
  };
  EXPECT_EQ(hit_after(3000), 2992);
  EXPECT_EQ(hit_after(2500), 2048);
  EXPECT_EQ(hit_after(2047), 1024);
  EXPECT_EQ(hit_after(1023), 0);
  // Three windows of 128: at 1024, at 2048 and at the end.
  EXPECT_LE(pools.sliding.idle(), 3 * 9);
}

TEST(PrefixCache, WhoeverComputesTheSameTokensAtTheSameTimeKeepsItsOwnBlocks) {
  KvPools pools(20, 20, 16);
  const Tokens prompt = Range(0, 40);
  SequenceBlocks one;
  SequenceBlocks two;
  one.Begin(pools, {}, true);
  two.Begin(pools, {}, true);
  Compute(one, prompt, 64);
  Compute(two, Join(prompt, Range(700, 24)), 64);
  EXPECT_EQ(pools.full.used(), 3 + 4);
  // The second one's further blocks hang below the first one's.
  EXPECT_EQ(Hit(pools, Join(prompt, Range(700, 30))), 64);
  two.Free();
  EXPECT_EQ(pools.full.idle(), 2);  // what it computed twice is free
}

TEST(PrefixCache, TheLeastRecentlyUsedGoesFirstEndOfAPromptBeforeItsBeginning) {
  KvPools pools(7, 20, 16);
  const Tokens old = Range(0, 50);
  const Tokens young = Range(1000, 50);
  ComputeAndFree(pools, old);
  ComputeAndFree(pools, young);
  EXPECT_EQ(pools.full.free(), 1);
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, true);
  blocks.Extend(0, 32);
  EXPECT_EQ(Hit(pools, young), 48);
  EXPECT_EQ(Hit(pools, old), 0);  // two full blocks are left, not their window
  EXPECT_EQ(pools.cache.nodes(), 5);
  blocks.Extend(32, 32);
  EXPECT_EQ(pools.cache.nodes(), 3);
  EXPECT_EQ(Hit(pools, young), 48);
  blocks.Extend(64, 16);
  EXPECT_EQ(Hit(pools, young), 0);
  EXPECT_EQ(pools.cache.nodes(), 2);
}

TEST(PrefixCache, EachKindIsEvictedByItself) {
  KvPools pools(20, 3, 16);
  const Tokens prompt = Range(0, 40);
  ComputeAndFree(pools, prompt, 16);
  EXPECT_EQ(Hit(pools, prompt), 32);
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, false);
  blocks.Extend(0, 48);  // needs all sliding blocks
  EXPECT_EQ(Hit(pools, prompt), 0);
  EXPECT_EQ(pools.full.idle(), 2);
  blocks.Free();
  // Computed once more, the full blocks that are there get sliding ones again.
  ComputeAndFree(pools, prompt, 16);
  EXPECT_EQ(Hit(pools, prompt), 32);
}

// A parent may go before its child: the child's block is held, and nothing leads to it any more.
TEST(PrefixCache, AnEvictedBlockTakesWithItWhatHangsBelowIt) {
  KvPools pools(8, 20, 16);
  const Tokens prompt = Range(0, 32);
  SequenceBlocks one;
  one.Begin(pools, {}, true);
  SequenceBlocks two;
  two.Begin(pools, {}, true);
  const Tokens longer = Join(prompt, Range(700, 32));
  Compute(one, prompt, 64);  // 2 blocks
  Compute(two, longer, 64);  // 4 blocks, the first two of them twice in the cache
  one.Free();
  SequenceBlocks greedy;
  greedy.Begin(pools, {}, true);
  greedy.Extend(0, 64);
  EXPECT_EQ(Hit(pools, Join(longer, {1})), 0);
  EXPECT_EQ(pools.cache.nodes(), 0);
  // It goes on by itself, and enters nothing that could not be found.
  greedy.Free();
  Compute(two, Join(longer, Range(900, 16)), 64);
  EXPECT_EQ(pools.cache.nodes(), 0);
  two.Free();
  EXPECT_EQ(pools.full.free(), 8);
}

TEST(PrefixCache, WhoDoesNotTakePartLeavesNothing) {
  KvPools pools(8, 8, 16);
  SequenceBlocks blocks;
  blocks.Begin(pools, {}, false);
  Compute(blocks, Range(0, 40), 64);
  blocks.Free();
  EXPECT_EQ(pools.cache.nodes(), 0);
  EXPECT_EQ(pools.full.free(), 8);
  EXPECT_EQ(pools.sliding.free(), 8);
}

}  // namespace
}  // namespace conclave::coordinator
