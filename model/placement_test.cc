#include "model/placement.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Config MakeConfig(int layers, int experts) {
  Config config;
  config.num_layers = layers;
  config.num_experts = experts;
  config.num_kv_heads = 8;
  config.vocab_size = 201088;
  return config;
}

void ExpectShape(const absl::StatusOr<ParallelShape>& shape, int dp, int tp) {
  ASSERT_TRUE(shape.ok()) << shape.status();
  EXPECT_EQ(shape->dp, dp);
  EXPECT_EQ(shape->tp, tp);
}

TEST(ResolveShapeTest, WhatIsNotGivenFollowsFromTheRest) {
  ExpectShape(ResolveShape(4, 0, 0), 4, 1);
  ExpectShape(ResolveShape(4, 0, 2), 2, 2);
  ExpectShape(ResolveShape(4, 1, 0), 1, 4);
  ExpectShape(ResolveShape(4, 4, 0), 4, 1);
  ExpectShape(ResolveShape(6, 3, 2), 3, 2);
  ExpectShape(ResolveShape(1, 0, 0), 1, 1);
}

TEST(ResolveShapeTest, RefusesWhatIsNotWholeOrContradicts) {
  const struct {
    int workers, dp, tp;
  } cases[] = {{4, 3, 0}, {4, 0, 3},  {4, 2, 4},   {4, 8, 0},  {4, 0, 8},
               {0, 0, 0}, {-4, 0, 0}, {4, -2, -2}, {4, 0, -1}, {4, 65536, 65536}};
  for (const auto& [workers, dp, tp] : cases) {
    EXPECT_EQ(ResolveShape(workers, dp, tp).status().code(), absl::StatusCode::kInvalidArgument)
        << workers << " " << dp << " " << tp;
  }
  EXPECT_THAT(std::string(ResolveShape(4, 3, 0).status().message()),
              HasSubstr("dp 3 x tp 1 is 3, not the 4 workers"));
}

TEST(CheckShapeTest, NamesTheNumbers) {
  const Config config = MakeConfig(1, 16);
  EXPECT_TRUE(CheckShape(config, {16, 1}).ok());
  EXPECT_TRUE(CheckShape(config, {2, 8}).ok());
  EXPECT_THAT(std::string(CheckShape(config, {1, 3}).message()),
              HasSubstr("tp 3 does not divide the model's 8 KV heads"));
  EXPECT_THAT(std::string(CheckShape(config, {17, 1}).message()),
              HasSubstr("17 ranks, more than the 16 experts"));
}

TEST(ParallelShapeTest, RanksOfAGroupAreAdjacent) {
  const ParallelShape shape{2, 3};
  EXPECT_EQ(shape.world(), 6);
  EXPECT_EQ(shape.dp_rank(4), 1);
  EXPECT_EQ(shape.tp_rank(4), 1);
}

TEST(BalancedPlacementTest, RangesAreContiguousAndAsEvenAsTheyGet) {
  const Placement placement = BalancedPlacement(MakeConfig(36, 128), 6);
  ASSERT_EQ(placement.layers.size(), 36u);
  EXPECT_EQ(placement.world, 6);
  for (const LayerPlacement& layer : {placement.layers.front(), placement.layers.back()}) {
    std::vector<int> all;
    std::vector<size_t> sizes;
    for (int rank = 0; rank < 6; ++rank) {
      const std::vector<int> experts = layer.ExpertsOf(rank);
      sizes.push_back(experts.size());
      all.insert(all.end(), experts.begin(), experts.end());
    }
    EXPECT_THAT(sizes, ElementsAre(22, 22, 21, 21, 21, 21));
    std::vector<int> expected(128);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(all, expected);
  }
}

TEST(RangeTest, VocabularyAndHeadsAreCutWithoutGaps) {
  Config config = MakeConfig(1, 1);
  config.vocab_size = 10;
  int at = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const Range range = VocabRange(config, 4, rank);
    EXPECT_EQ(range.begin, at);
    EXPECT_EQ(range.size(), rank < 2 ? 3 : 2);
    at = range.end;
  }
  EXPECT_EQ(at, 10);
  EXPECT_EQ(KvHeadRange(config, 4, 3).begin, 6);
  EXPECT_EQ(KvHeadRange(config, 4, 3).end, 8);
}

// What every placement must be, and that it is not worse than chance: returns the largest load.
double CheckPlacement(const LayerPlacement& layer, std::span<const uint64_t> load, int world,
                      int replicas) {
  const int experts = static_cast<int>(load.size());
  std::vector<double> rank_load(static_cast<size_t>(world), 0);
  std::vector<int> held(static_cast<size_t>(world), 0);
  int copies = 0;
  EXPECT_EQ(layer.ranks_of_expert.size(), load.size());
  for (size_t expert = 0; expert < load.size(); ++expert) {
    const std::vector<int>& ranks = layer.ranks_of_expert[expert];
    EXPECT_FALSE(ranks.empty());
    EXPECT_TRUE(std::is_sorted(ranks.begin(), ranks.end()));
    EXPECT_EQ(std::set<int>(ranks.begin(), ranks.end()).size(), ranks.size());
    for (const int rank : ranks) {
      EXPECT_TRUE(rank >= 0 && rank < world);
      ++held[static_cast<size_t>(rank)];
      ++copies;
      rank_load[static_cast<size_t>(rank)] +=
          static_cast<double>(load[expert]) / static_cast<double>(ranks.size());
    }
  }
  EXPECT_EQ(copies, experts + std::clamp(replicas, 0, experts * (world - 1)));
  EXPECT_LE(
      *std::max_element(held.begin(), held.end()) - *std::min_element(held.begin(), held.end()), 1);
  return *std::max_element(rank_load.begin(), rank_load.end());
}

TEST(PlacementFromLoadTest, HoldsItsPromisesForAnySizesAndLoads) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 3000; ++round) {
    const int experts = 1 + static_cast<int>(random() % 20);
    const int world = 1 + static_cast<int>(random() % static_cast<uint64_t>(experts));
    const int replicas = static_cast<int>(random() % 30) - 2;
    const uint64_t spread = uint64_t{1} << random() % 20;
    std::vector<uint64_t> load(static_cast<size_t>(2 * experts));
    for (uint64_t& tokens : load) tokens = random() % spread * (random() % 3);
    const Config config = MakeConfig(2, experts);
    const Placement placement = PlacementFromLoad(config, world, load, replicas);
    ASSERT_EQ(placement.layers.size(), 2u);
    for (size_t layer = 0; layer < 2; ++layer) {
      CheckPlacement(placement.layers[layer],
                     std::span(load).subspan(layer * static_cast<size_t>(experts),
                                             static_cast<size_t>(experts)),
                     world, replicas);
    }
    ASSERT_FALSE(testing::Test::HasFailure())
        << experts << " experts, " << world << " ranks, " << replicas << " replicas";
  }
}

// Loads for which the last copies find room only on ranks that hold their expert already, so that
// another expert has to move.
TEST(PlacementFromLoadTest, FindsAPlaceForTheLastCopies) {
  const std::pair<int, std::vector<uint64_t>> cases[] = {{16, {3, 3, 1, 1, 2, 1, 1, 2, 2, 2, 2}},
                                                         {11, {1, 1, 1, 3, 1, 2, 1, 2, 1, 3}},
                                                         {12, {1, 1, 2, 1, 1, 3, 3, 1, 3}},
                                                         {12, {3, 1, 3, 2, 3, 1, 1, 1, 1}}};
  for (const auto& [replicas, load] : cases) {
    const Config config = MakeConfig(1, static_cast<int>(load.size()));
    const Placement placement = PlacementFromLoad(config, 3, load, replicas);
    CheckPlacement(placement.layers[0], load, 3, replicas);
  }
}

TEST(PlacementFromLoadTest, SpreadsTheHotExperts) {
  // Contiguous halves would be 26 and 4.
  const std::vector<uint64_t> load = {8, 7, 6, 5, 1, 1, 1, 1};
  const Placement placement = PlacementFromLoad(MakeConfig(1, 8), 2, load, 0);
  EXPECT_EQ(CheckPlacement(placement.layers[0], load, 2, 0), 15);
}

TEST(PlacementFromLoadTest, ReplicasGoToTheHottest) {
  const std::vector<uint64_t> load = {1, 100, 1, 1};
  const Placement placement = PlacementFromLoad(MakeConfig(1, 4), 4, load, 3);
  EXPECT_THAT(placement.layers[0].ranks_of_expert[1], ElementsAre(0, 1, 2, 3));
  EXPECT_NEAR(CheckPlacement(placement.layers[0], load, 4, 3), 26, 0.01);
}

TEST(PlacementFromLoadTest, SkewedLoadEndsNearTheMean) {
  std::mt19937_64 random(3);
  std::vector<uint64_t> load(128);
  uint64_t total = 0;
  for (size_t i = 0; i < load.size(); ++i) {
    load[i] = 100000 / (i + 1) + random() % 100;
    total += load[i];
  }
  std::shuffle(load.begin(), load.end(), random);
  const Placement placement = PlacementFromLoad(MakeConfig(1, 128), 8, load, 16);
  const double mean = static_cast<double>(total) / 8;
  EXPECT_LT(CheckPlacement(placement.layers[0], load, 8, 16), 1.1 * mean);
}

TEST(PlacementFromLoadTest, IsAPureFunction) {
  const std::vector<uint64_t> load(32, 5);  // ties everywhere
  const Config config = MakeConfig(1, 32);
  EXPECT_EQ(PlacementFromLoad(config, 5, load, 4).layers[0].ranks_of_expert,
            PlacementFromLoad(config, 5, load, 4).layers[0].ranks_of_expert);
}

}  // namespace
}  // namespace conclave::model
