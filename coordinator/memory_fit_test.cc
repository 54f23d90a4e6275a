#include "coordinator/memory_fit.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

// Two ranks with 100 MiB of weights each, 150 MiB in all: part of them is the same on both.
MemoryNeeds Needs() {
  return {.weight_bytes = {100 * kMiB, 100 * kMiB},
          .model_bytes = 150 * kMiB,
          .activation_bytes = 10 * kMiB,
          .full_block_bytes = 1000,
          .sliding_block_bytes = 500,
          .max_running = 4,
          .per_sequence = {.full = 16, .sliding = 3},
          .decoding_sliding = 2};
}

std::vector<RankMemory> OneHost(int64_t total, int64_t free) {
  return std::vector<RankMemory>(
      2,
      {.host_id = "a", .cuda = false, .total_bytes = total, .free_bytes = free, .held_bytes = 0});
}

TEST(SizeCache, HoldsEverySequenceAtTheContextWhenThereIsRoom) {
  const auto cache = SizeCache(Needs(), 100 * kMiB);
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ(cache->full_blocks(), 64u);
  EXPECT_EQ(cache->sliding_blocks(), 12u);
  EXPECT_EQ(cache->max_sequences(), 4u);
  EXPECT_EQ(cache->block_tokens(), 16u);
}

TEST(SizeCache, NeverPassesItsBudget) {
  for (int64_t budget = 2500; budget < 80'000; budget += 111) {
    const auto cache = SizeCache(Needs(), budget);
    ASSERT_TRUE(cache.ok()) << budget;
    EXPECT_LE(cache->full_blocks() * 1000 + cache->sliding_blocks() * 500, budget);
    EXPECT_GE(cache->sliding_blocks(), 3u);
    EXPECT_GE(cache->full_blocks(), 1u);
  }
}

// 120b on one GPU that its weights leave 13.5 GB: 256 sequences of 1,152 tokens, each past its
// window, and two chunks of 2,048.
TEST(SizeCache, ManySequencesGetTheirContextAndNotAChunkOfSlidingBlocksEach) {
  MemoryNeeds needs = Needs();
  needs.full_block_bytes = needs.sliding_block_bytes = 18 * 16 * 2048;
  needs.max_running = 256;
  needs.per_sequence = PeakBlocks(131'072, 2048, 128);
  needs.decoding_sliding = PeakSlidingBlocks(131'072, 1, 128);
  const auto cache = SizeCache(needs, int64_t{13'500'000'000});
  ASSERT_TRUE(cache.ok());
  EXPECT_GE(cache->full_blocks(), 256u * 1152 / 16);
  EXPECT_GE(cache->sliding_blocks(), 256u * (needs.decoding_sliding + 1) + 2 * (2048 / 16));
  // One sequence alone gets as much of the cache for its prefix as fits beside the full blocks.
  needs.max_running = 1;
  needs.per_sequence.full *= 8;
  const auto one = SizeCache(needs, int64_t{13'500'000'000});
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->sliding_blocks(), static_cast<uint64_t>(needs.per_sequence.sliding));
}

TEST(SizeCache, ABudgetBelowOneWindowIsRefusedWithTheNumbers) {
  const auto cache = SizeCache(Needs(), 2499);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(cache.status().ToString(), HasSubstr("2499 bytes"));
}

TEST(FitMemory, UnaskedTheCacheTakesAtMostATenthOfTheFreeHostMemoryOverItsRanks) {
  MemoryNeeds needs = Needs();
  needs.full_block_bytes = kMiB;
  needs.sliding_block_bytes = kMiB;
  const auto cache = FitMemory(needs, OneHost(1000 * kMiB, 600 * kMiB), 0);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->full_blocks() + cache->sliding_blocks(), 30u);
}

TEST(FitMemory, MappedWeightsCountOnceAgainstTheHostsTotal) {
  // 150 of weights and 20 of activations; two times 100 would not fit.
  EXPECT_TRUE(FitMemory(Needs(), OneHost(180 * kMiB, 60 * kMiB), 0).ok());
  const auto refused = FitMemory(Needs(), OneHost(160 * kMiB, 60 * kMiB), 0);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("host a with 2 rank(s) has 160.0 MiB"));
  EXPECT_THAT(refused.status().ToString(), HasSubstr("150.0 MiB of weights"));
}

TEST(FitMemory, PrivateWeightsOfEveryRankMustFitInWhatIsFree) {
  MemoryNeeds needs = Needs();
  needs.weights_are_private = true;
  // 200 of weights, 20 of activations and the cache's few.
  EXPECT_TRUE(FitMemory(needs, OneHost(1000 * kMiB, 222 * kMiB), 0).ok());
  std::vector<RankMemory> host = OneHost(1000 * kMiB, 219 * kMiB);
  const auto refused = FitMemory(needs, host, 0);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("200.0 MiB of weights"));
  // In a later epoch they are there already.
  for (RankMemory& rank : host) rank.held_bytes = 100 * kMiB;
  EXPECT_TRUE(FitMemory(needs, host, 0).ok());
}

TEST(FitMemory, ACacheThatWasAskedForMustFitInWhatIsFree) {
  MemoryNeeds needs = Needs();
  needs.full_block_bytes = kMiB;
  const std::vector<RankMemory> host = OneHost(1000 * kMiB, 100 * kMiB);
  EXPECT_TRUE(FitMemory(needs, host, 30 * kMiB).ok());
  const auto refused = FitMemory(needs, host, 60 * kMiB);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("of KV cache"));
}

TEST(FitMemory, TheCacheOfTheLastEpochIsFreedForTheNext) {
  MemoryNeeds needs = Needs();
  needs.full_block_bytes = kMiB;
  std::vector<RankMemory> host = OneHost(1000 * kMiB, 60 * kMiB);
  EXPECT_FALSE(FitMemory(needs, host, 60 * kMiB).ok());
  for (RankMemory& rank : host) rank.held_bytes = 60 * kMiB;
  EXPECT_TRUE(FitMemory(needs, host, 60 * kMiB).ok());
}

TEST(FitMemory, EveryHostMustFitItsOwnShare) {
  std::vector<RankMemory> hosts = OneHost(1000 * kMiB, 500 * kMiB);
  hosts[1].host_id = "b";
  EXPECT_TRUE(FitMemory(Needs(), hosts, 0).ok());
  hosts[1].total_bytes = 105 * kMiB;
  const auto refused = FitMemory(Needs(), hosts, 0);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("host b with 1 rank(s)"));
}

TEST(FitMemory, AGpuHoldsItsOwnWeightsAndFillsUpWithCache) {
  MemoryNeeds needs = Needs();
  needs.full_block_bytes = kMiB;
  needs.sliding_block_bytes = kMiB;
  std::vector<RankMemory> gpus = OneHost((2048 + 126) * kMiB, 2100 * kMiB);
  for (size_t rank = 0; rank < gpus.size(); ++rank) {
    gpus[rank].cuda = true;
    gpus[rank].host_id = "gpu-" + std::to_string(rank);
  }
  const auto cache = FitMemory(needs, gpus, 0);
  ASSERT_TRUE(cache.ok()) << cache.status();
  // 2 GiB are set aside; 126 MiB less 100 of weights and 10 of activations.
  EXPECT_EQ(cache->full_blocks() + cache->sliding_blocks(), 16u);
  // What others hold of a GPU is not there to be planned.
  std::vector<RankMemory> shared = gpus;
  shared[0].free_bytes = 122 * kMiB;
  const auto beside = FitMemory(needs, shared, 0);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_EQ(beside->full_blocks() + beside->sliding_blocks(), 12u);
  gpus[1].total_bytes = (2048 + 105) * kMiB;
  EXPECT_THAT(FitMemory(needs, gpus, 0).status().ToString(), HasSubstr("rank 1"));
}

TEST(FitMemory, OfALargeGpuAShareIsSetAside) {
  MemoryNeeds needs = Needs();
  needs.weight_bytes = {1000 * kMiB};
  needs.full_block_bytes = needs.sliding_block_bytes = 64 * kMiB;
  needs.max_running = 100;
  needs.per_sequence = {.full = 8192, .sliding = 1};
  const std::vector<RankMemory> gpu = {{.host_id = "gpu",
                                        .cuda = true,
                                        .total_bytes = 80'000 * kMiB,
                                        .free_bytes = 79'000 * kMiB,
                                        .held_bytes = 0}};
  const auto cache = FitMemory(needs, gpu, 0);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->full_blocks() + cache->sliding_blocks(), (74'400 - 1000 - 10) / 64u);
}

// Each has a context, working memory and NCCL's buffers of its own.
TEST(FitMemory, EachRankThatSharesAGpuHasItsOwnReserve) {
  constexpr int kRanks = 8;
  constexpr int64_t kGiB = 1024 * kMiB;
  MemoryNeeds needs = Needs();
  needs.weight_bytes.assign(kRanks, 1 * kGiB);
  needs.full_block_bytes = needs.sliding_block_bytes = 64 * kMiB;
  needs.max_running = 100;
  needs.per_sequence = {.full = 8192, .sliding = 1};
  const std::vector<RankMemory> gpu(kRanks, {.host_id = "gpu",
                                             .cuda = true,
                                             .total_bytes = 80 * kGiB,
                                             .free_bytes = 75 * kGiB,
                                             .held_bytes = 0});
  const auto cache = FitMemory(needs, gpu, 0);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const int64_t blocks = cache->full_blocks() + cache->sliding_blocks();
  const int64_t planned = kRanks * (1 * kGiB + 10 * kMiB + blocks * 64 * kMiB);
  EXPECT_LE(planned, (80 - kRanks * 2) * kGiB);
  EXPECT_GT(planned, (80 - kRanks * 2) * kGiB - kRanks * 64 * kMiB);
  // Nor may a cache that was asked for take it.
  const auto refused = FitMemory(needs, gpu, 8 * kGiB);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("16.00 GiB set aside"));
}

TEST(CheckRoom, RanksThatShareAMemoryAddUp) {
  std::vector<RankMemory> ranks = OneHost(1000 * kMiB, 100 * kMiB);
  ranks[1].free_bytes = 90 * kMiB;
  EXPECT_TRUE(CheckRoom(ranks, std::vector<int64_t>{50 * kMiB, 40 * kMiB}).ok());
  const absl::Status refused = CheckRoom(ranks, std::vector<int64_t>{50 * kMiB, 41 * kMiB});
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.ToString(), HasSubstr("host a has 90.0 MiB free"));
  EXPECT_THAT(refused.ToString(), HasSubstr("needs 91.0 MiB more"));
  ranks[1].host_id = "b";
  EXPECT_TRUE(CheckRoom(ranks, std::vector<int64_t>{50 * kMiB, 41 * kMiB}).ok());
}

}  // namespace
}  // namespace conclave::coordinator
