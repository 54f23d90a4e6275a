#include "coordinator/kv_blocks.h"

#include <algorithm>
#include <deque>
#include <set>

#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

KvPools MakePools(int full, int sliding, int window) {
  return {.full = BlockPool(full), .sliding = BlockPool(sliding), .window = window};
}

TEST(BlockPool, HandsOutEachBlockOnceAndOnlyWhatWasPromised) {
  BlockPool pool(3);
  EXPECT_FALSE(pool.Reserve(4));
  EXPECT_EQ(pool.reserved(), 0);
  ASSERT_TRUE(pool.Reserve(2));
  EXPECT_FALSE(pool.Reserve(2));
  const int first = pool.Take();
  const int second = pool.Take();
  EXPECT_NE(first, second);
  EXPECT_EQ(pool.used(), 2);
  pool.Return(first);
  pool.Return(second);
  pool.CancelReservation(2);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_TRUE(pool.Reserve(3));
}

TEST(BlockPoolDeathTest, TakingMoreThanPromisedIsABrokenInvariant) {
  BlockPool pool(2);
  ASSERT_TRUE(pool.Reserve(1));
  pool.Take();
  EXPECT_DEATH(pool.Take(), "broken invariant");
}

TEST(BlockPoolDeathTest, ReturningABlockTwiceIsABrokenInvariant) {
  BlockPool pool(2);
  ASSERT_TRUE(pool.Reserve(2));
  const int block = pool.Take();
  pool.Take();
  pool.Return(block);
  EXPECT_DEATH(pool.Return(block), "broken invariant");
}

TEST(SequenceBlocks, PastTheWindowASequenceHoldsAConstantNumberOfSlidingBlocks) {
  constexpr int kWindow = 32;
  KvPools pools = MakePools(100, 100, kWindow);
  SequenceBlocks blocks;
  ASSERT_TRUE(blocks.Reserve(pools, 1000, 1));
  for (int position = 0; position < 1000; ++position) {
    blocks.Extend(position, 1, 1);
    EXPECT_EQ(blocks.full_blocks(), position / 16 + 1);
    // 32 positions lie in two blocks when aligned and in three otherwise.
    const int expected = position < kWindow ? position / 16 + 1 : position % 16 == 15 ? 2 : 3;
    EXPECT_EQ(blocks.sliding_blocks(), expected) << "at position " << position;
  }
  EXPECT_EQ(pools.max_per_sequence.sliding, 3);
  EXPECT_EQ(pools.max_per_sequence.full, 63);
  EXPECT_EQ(pools.sliding.reserved(), 3);
}

TEST(SequenceBlocks, FreeingReturnsEverythingAndThePromise) {
  KvPools pools = MakePools(10, 10, 16);
  {
    SequenceBlocks blocks;
    ASSERT_TRUE(blocks.Reserve(pools, 100, 40));
    blocks.Extend(0, 40, 40);
    blocks.Extend(40, 40, 40);
    EXPECT_EQ(pools.full.used(), 5);
  }
  EXPECT_EQ(pools.full.used(), 0);
  EXPECT_EQ(pools.full.reserved(), 0);
  EXPECT_EQ(pools.sliding.used(), 0);
  EXPECT_EQ(pools.sliding.reserved(), 0);
}

TEST(SequenceBlocks, APromiseThatDoesNotFitOneKindTakesNothingOfTheOther) {
  KvPools pools = MakePools(100, 2, 64);
  SequenceBlocks blocks;
  EXPECT_FALSE(blocks.Reserve(pools, 200, 1));
  EXPECT_EQ(pools.full.reserved(), 0);
}

// For every window, chunk and length: the chunk's window is covered, nothing older is kept, and the
// promise made at the start is enough (Take would abort otherwise).
TEST(SequenceBlocks, EveryChunkFindsItsWindowWhateverTheChunking) {
  for (int window : {1, 2, 15, 16, 17, 128}) {
    for (int chunk : {1, 7, 16, 64, 100}) {
      for (int length : {1, 16, 17, 300}) {
        KvPools pools = MakePools(20, 20, window);
        SequenceBlocks blocks;
        ASSERT_TRUE(blocks.Reserve(pools, length, chunk));
        int first_block = 0;
        std::deque<int> table;
        for (int start = 0; start < length; start += chunk) {
          const int rows = std::min(chunk, length - start);
          const BlockDelta delta = blocks.Extend(start, rows, chunk);
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

}  // namespace
}  // namespace conclave::coordinator
