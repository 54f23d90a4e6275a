#include "coordinator/rebalance_plan.h"

#include <algorithm>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "gtest/gtest.h"

namespace conclave::coordinator {
namespace {

model::Config SmallConfig(int layers, int experts) {
  model::Config config;
  config.num_layers = layers;
  config.num_experts = experts;
  return config;
}

// As ranks that share out an expert's pairs evenly would report.
ObservedLoad Observed(const model::Placement& placement, const std::vector<uint64_t>& experts) {
  ObservedLoad load;
  load.experts = experts;
  const size_t per_layer = experts.size() / placement.layers.size();
  for (size_t layer = 0; layer < placement.layers.size(); ++layer) {
    std::vector<uint64_t> ranks(placement.world);
    for (size_t expert = 0; expert < per_layer; ++expert) {
      const std::vector<int>& holders = placement.layers[layer].ranks_of_expert[expert];
      for (const int rank : holders) {
        ranks[rank] += experts[layer * per_layer + expert] / holders.size();
      }
    }
    load.ranks.insert(load.ranks.end(), ranks.begin(), ranks.end());
  }
  return load;
}

// A few experts are asked for most, others hardly ever.
std::vector<uint64_t> Skewed(int layers, int experts, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint64_t> load;
  for (int i = 0; i < layers * experts; ++i) {
    const double u = static_cast<double>(random()) / 4294967296.0;
    load.push_back(static_cast<uint64_t>(10 + 5000 * u * u * u * u));
  }
  return load;
}

TEST(PlanRebalance, ImbalanceFallsEveryExpertKeepsARankAndTheMovesAddUp) {
  constexpr int kLayers = 6;
  constexpr int kExperts = 32;
  const model::Config config = SmallConfig(kLayers, kExperts);
  for (const int world : {2, 3, 4, 8}) {
    for (const int replicas : {0, 1, 6, 32}) {
      SCOPED_TRACE(testing::Message() << world << " ranks, " << replicas << " replicas");
      const model::Placement now = model::BalancedPlacement(config, world);
      const ObservedLoad load = Observed(now, Skewed(kLayers, kExperts, 7));
      const RebalancePlan plan = PlanRebalance(config, now, load, replicas);
      ASSERT_EQ(plan.layers.size(), static_cast<size_t>(kLayers));
      double before = 0;
      double after = 0;
      std::vector<int> held(world), gained(world), dropped(world);
      for (int layer = 0; layer < kLayers; ++layer) {
        before += plan.layers[layer].before;
        after += plan.layers[layer].after;
        EXPECT_LE(plan.layers[layer].after, plan.layers[layer].before + 1e-9);
        size_t copies = 0;
        for (int expert = 0; expert < kExperts; ++expert) {
          const std::vector<int>& holders = plan.placement.layers[layer].ranks_of_expert[expert];
          ASSERT_FALSE(holders.empty());
          EXPECT_TRUE(std::is_sorted(holders.begin(), holders.end()));
          EXPECT_EQ(std::set<int>(holders.begin(), holders.end()).size(), holders.size());
          copies += holders.size();
        }
        EXPECT_EQ(copies, static_cast<size_t>(kExperts + replicas));
        for (int rank = 0; rank < world; ++rank) {
          const std::vector<int> had = now.layers[layer].ExpertsOf(rank);
          const std::vector<int> has = plan.placement.layers[layer].ExpertsOf(rank);
          for (const int expert : has) {
            ++held[rank];
            gained[rank] += !std::binary_search(had.begin(), had.end(), expert);
          }
          for (const int expert : had) {
            dropped[rank] += !std::binary_search(has.begin(), has.end(), expert);
          }
        }
      }
      EXPECT_LT(after - kLayers, 0.5 * (before - kLayers));
      for (int rank = 0; rank < world; ++rank) {
        EXPECT_EQ(plan.ranks[rank].held, held[rank]);
        EXPECT_EQ(plan.ranks[rank].gained, gained[rank]);
        EXPECT_EQ(plan.ranks[rank].dropped, dropped[rank]);
        EXPECT_LE(plan.ranks[rank].most_in_a_layer, (kExperts + replicas + world - 1) / world);
      }
    }
  }
}

// Sets of experts have no rank of their own: they are given to the ranks that hold most of them.
TEST(PlanRebalance, ExpertsStayWhereTheyAreWhenTheSetsAllowIt) {
  const model::Config config = SmallConfig(1, 8);
  model::Placement now;
  now.world = 2;
  now.layers.resize(1);
  // Even but for expert 7, of rank 0: the even split leaves it alone with the cold ones.
  now.layers[0].ranks_of_expert = {{1}, {1}, {1}, {1}, {0}, {0}, {0}, {0}};
  const ObservedLoad load = Observed(now, {10, 10, 10, 10, 5, 5, 5, 100});
  const RebalancePlan plan = PlanRebalance(config, now, load, 0);
  EXPECT_LE(plan.ranks[0].gained + plan.ranks[1].gained, 4);
  EXPECT_EQ(plan.placement.layers[0].ranks_of_expert[7], std::vector<int>{0});
}

TEST(PlanRebalance, ALayerThatGainsNothingKeepsItsPlacement) {
  const model::Config config = SmallConfig(2, 4);
  model::Placement now;
  now.world = 2;
  now.layers.resize(2);
  now.layers[0].ranks_of_expert = {{1}, {0}, {1}, {0}};  // even, though not as it would be planned
  now.layers[1].ranks_of_expert = {{0}, {0}, {1}, {1}};
  const ObservedLoad load = Observed(now, {50, 50, 50, 50, 100, 100, 1, 1});
  const RebalancePlan plan = PlanRebalance(config, now, load, 0);
  EXPECT_EQ(plan.placement.layers[0].ranks_of_expert, now.layers[0].ranks_of_expert);
  EXPECT_EQ(plan.layers[0].after, plan.layers[0].before);
  EXPECT_NE(plan.placement.layers[1].ranks_of_expert, now.layers[1].ranks_of_expert);
  EXPECT_TRUE(plan.changes());
  // Planned again from what it gives, nothing moves.
  const ObservedLoad then = Observed(plan.placement, load.experts);
  EXPECT_FALSE(PlanRebalance(config, plan.placement, then, 0).changes());
}

TEST(PlanRebalance, WithoutLoadALayerCountsAsEven) {
  const model::Config config = SmallConfig(1, 4);
  const model::Placement now = model::BalancedPlacement(config, 2);
  const RebalancePlan plan = PlanRebalance(config, now, Observed(now, {0, 0, 0, 0}), 0);
  EXPECT_EQ(plan.layers[0].before, 1);
  EXPECT_FALSE(plan.changes());
}

}  // namespace
}  // namespace conclave::coordinator
