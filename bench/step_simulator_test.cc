// The simulator against steps worked out by hand, and against what was measured.

#include "bench/step_simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

namespace conclave::bench {
namespace {

using coordinator::ExchangeChoice;
using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;
using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;

model::Config SmallConfig(int layers, int experts, int choices) {
  model::Config config;
  config.num_layers = layers;
  config.num_experts = experts;
  config.experts_per_token = choices;
  config.hidden_size = 64;
  config.intermediate_size = 64;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 128;
  config.sliding_window = 8;
  config.mxfp4 = true;
  config.layer_types.assign(layers, model::LayerType::kFull);
  return config;
}

// Every op is free but the experts of a layer, one second whatever they are.
DeviceProfile OnlyExperts() {
  constexpr OpCost kFree = {0, 1e30, 1e30, 1};
  const Curve nothing({{1, 0}});
  return {.name = "test",
          .dense = kFree,
          .dense_extra = nothing,
          .output_extra = nothing,
          .full_attention = kFree,
          .sliding_attention = kFree,
          .experts = {1, 1e30, 1e30, 1},
          .small_ops = nothing,
          .sum = kFree};
}

LinkProfile Instant() {
  constexpr LinkProfile::Tier kTier = {0, 0, 1e30};
  return {.name = "test", .ranks_per_node = 8, .local = kTier, .remote = kTier};
}

// One layer, two choices: each token's experts.
RoutingTrace TwoChoices(std::vector<uint16_t> ids) { return {1, 4, 2, std::move(ids)}; }

constexpr int64_t kSlot = 64 * 2 + 2 * 4 + 2 * 4;  // of SmallConfig, a multiple of 16
constexpr int64_t kPartialRow = 64 * 4;

StepPrediction Simulate(const RoutingTrace& trace, const model::ParallelShape& shape,
                        std::vector<int> rows, ExchangeChoice choice) {
  const model::Config config = SmallConfig(1, 4, 2);
  const model::Placement placement = model::BalancedPlacement(config, shape.world());
  const Simulator simulator(config, placement, shape, OnlyExperts(), Instant(), choice);
  return simulator.Run(trace, 0, {.rows = std::move(rows), .keys = 4});
}

TEST(RoutingTraceTest, AFileReadsBackAsItWas) {
  const RoutingTrace trace = DrawZipf(SmallConfig(3, 8, 2), 5, 1, 7);
  const auto read = ParseRoutingTrace(FormatRoutingTrace(trace));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ids, trace.ids);
  EXPECT_EQ(read->tokens(), 5);
}

TEST(RoutingTraceTest, WhatIsNoTraceIsRefusedWithItsLine) {
  const std::string head = "conclave-routing 1\nlayers 2 experts 4 experts_per_token 2\n";
  EXPECT_TRUE(ParseRoutingTrace(head + "0,1 2,3\n").ok());
  for (const auto& [text, wanted] : {
           std::pair<std::string, const char*>{"", "line 1"},
           {"conclave-routing 1\nlayers 2 experts x experts_per_token 2\n", "line 2"},
           {"conclave-routing 1\nlayers 2 experts 4 experts_per_token 5\n", "more choices"},
           {head + "0,1 2,3\n0,1 2,4\n", "line 4 of the routing: layer 1"},
           {head + "0,1 2,2\n", "expert 2 twice"},
           {head + "0,1\n", "layer 1 has not 2 ids"},
           {head + "0,1 2,3 0,1\n", "too many layers"},
           {head + "0,1,2 2,3\n", "too many ids"},
       }) {
    const auto read = ParseRoutingTrace(text);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(read.status().message(), HasSubstr(wanted));
  }
}

TEST(RoutingTraceTest, DrawsAreOfDifferentExpertsAndFollowTheWeights) {
  const model::Config config = SmallConfig(2, 16, 4);
  const RoutingTrace even = DrawZipf(config, 2000, 0, 3);
  for (int token = 0; token < even.tokens(); ++token) {
    const auto ids = even.Of(token, 1);
    EXPECT_EQ(std::set<uint16_t>(ids.begin(), ids.end()).size(), 4u);
  }
  const std::vector<uint64_t> load = LoadOf(even, 0, even.tokens());
  for (const uint64_t pairs : load) EXPECT_NEAR(static_cast<double>(pairs), 500, 100);
  std::vector<uint64_t> skewed = LoadOf(DrawZipf(config, 2000, 1.5, 3), 0, 2000);
  EXPECT_GT(*std::max_element(skewed.begin(), skewed.end()), 1700u);
  EXPECT_EQ(DrawZipf(config, 50, 1, 3).ids, DrawZipf(config, 50, 1, 3).ids);
  EXPECT_NE(DrawZipf(config, 50, 1, 3).ids, DrawZipf(config, 50, 1, 4).ids);
}

TEST(RoutingTraceTest, DrawsFromLoadUseLoadedExpertsOnlyWhileTheySuffice) {
  const model::Config config = SmallConfig(1, 4, 2);
  const std::vector<uint64_t> load = {10, 0, 20, 30};
  const RoutingTrace drawn = DrawFromLoad(config, load, 500, 1);
  const std::vector<uint64_t> found = LoadOf(drawn, 0, 500);
  EXPECT_EQ(found[1], 0u);
  EXPECT_LT(found[0], found[2]);
  EXPECT_LT(found[2], found[3]);
  const std::vector<uint64_t> one = {0, 0, 5, 0};
  EXPECT_EQ(DrawFromLoad(config, one, 10, 1).tokens(), 10);
}

TEST(RoutingTraceTest, ReadsTheLoadOfAllRanksOfAStatus) {
  const model::Config config = SmallConfig(1, 4, 2);
  const auto load = LoadFromStatus(config, R"({"ranks": [
      {"layers": [{"experts": [0, 1], "load": [5, 6]}]},
      {"layers": [{"experts": [1, 2, 3], "load": [1, 7, 8]}]}]})");
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_THAT(*load, ElementsAre(5, 7, 7, 8));
  for (const char* text : {"", "{}", "[]", R"({"ranks": [{"layers": []}]})", R"({"ranks": [{}]})",
                           R"({"ranks": [{"layers": [{"experts": [9], "load": [1]}]}]})",
                           R"({"ranks": [{"layers": [{"experts": [0, 1], "load": [1]}]}]})"}) {
    EXPECT_EQ(LoadFromStatus(config, text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(CostModelTest, CurvesAreLinearBetweenPointsAndOpsHideTheShorterPart) {
  const Curve curve({{1, 10}, {3, 20}, {4, 40}});
  EXPECT_DOUBLE_EQ(curve.At(0), 10);
  EXPECT_DOUBLE_EQ(curve.At(2), 15);
  EXPECT_DOUBLE_EQ(curve.At(3), 20);
  EXPECT_DOUBLE_EQ(curve.At(5), 60);
  EXPECT_DOUBLE_EQ((OpCost{1, 10, 5, 1}.Seconds(100, 20)), 11);
  EXPECT_DOUBLE_EQ((OpCost{1, 10, 5, 0.25}.Seconds(100, 20)), 14);
}

// Ranks hold experts {0, 1} and {2, 3}.
TEST(SimulatorTest, SendsOneCopyForEachRankAndCountsEveryBytePaddingIncluded) {
  const RoutingTrace trace = TwoChoices({2, 3, /**/ 0, 1, /**/ 0, 2, /**/ 3, 1});
  const StepPrediction fixed = Simulate(trace, {2, 1}, {3, 1}, ExchangeChoice::kFixed);
  EXPECT_EQ(fixed.mode, EXCHANGE_MODE_FIXED);
  EXPECT_THAT(fixed.copies, ElementsAre(2, 1));  // tokens 0 and 2; token 3
  EXPECT_THAT(fixed.pairs, ElementsAre(4, 4));
  const int64_t bytes = (1 + 4) * kSlot + 4 * kPartialRow;  // a bucket of 4 slots
  EXPECT_THAT(fixed.sent_bytes, ElementsAre(bytes, bytes));

  const StepPrediction exact = Simulate(trace, {2, 1}, {3, 1}, ExchangeChoice::kExact);
  EXPECT_EQ(exact.mode, EXCHANGE_MODE_EXACT);
  EXPECT_THAT(exact.sent_bytes,
              ElementsAre(4 + 2 * kSlot + 1 * kPartialRow, 4 + 1 * kSlot + 2 * kPartialRow));
}

TEST(SimulatorTest, ReplicatedRanksExchangeSumsOnly) {
  const RoutingTrace trace = TwoChoices({2, 3, /**/ 0, 1});
  const StepPrediction step = Simulate(trace, {1, 2}, {2}, ExchangeChoice::kAuto);
  EXPECT_EQ(step.mode, EXCHANGE_MODE_REPLICATED);
  EXPECT_THAT(step.copies, ElementsAre(0, 0));
  // Embedding, o_proj, experts; the logits of one row of half the vocabulary, and its token.
  const int64_t bytes = 2 * 64 * 2 + 2 * 2 * kPartialRow + 64 * 4 + 4;
  EXPECT_THAT(step.sent_bytes, ElementsAre(bytes, bytes));
}

TEST(SimulatorTest, PartitionedRowsAreScatteredAndGathered) {
  const RoutingTrace trace = TwoChoices({2, 3, /**/ 0, 1});
  const StepPrediction step = Simulate(trace, {1, 2}, {2}, ExchangeChoice::kExact);
  EXPECT_THAT(step.copies, ElementsAre(1, 1));  // row 0 is rank 0's, row 1 rank 1's
  const int64_t bytes =
      2 * 64 * 2 + 1 * kPartialRow + (4 + kSlot + kPartialRow) + 64 * 2 + 64 * 4 + 4;
  EXPECT_THAT(step.sent_bytes, ElementsAre(bytes, bytes));
}

TEST(SimulatorTest, AStepTakesWhatItsBusiestRankTakes) {
  // All tokens go to rank 1, whose second rank 0 waits for.
  const RoutingTrace trace = TwoChoices({2, 3});
  const StepPrediction step = Simulate(trace, {2, 1}, {4, 4}, ExchangeChoice::kFixed);
  EXPECT_DOUBLE_EQ(step.seconds, 1);
  EXPECT_THAT(step.busy, ElementsAre(DoubleNear(0, 1e-9), DoubleNear(1, 1e-9)));
  EXPECT_THAT(step.pairs, ElementsAre(0, 16));
  EXPECT_DOUBLE_EQ(step.pair_imbalance, 2);
  EXPECT_DOUBLE_EQ(step.time_imbalance, 2);
}

TEST(SimulatorTest, AnIdleGroupTakesPartAndComputesForOthers) {
  const RoutingTrace trace = TwoChoices({1, 2});
  const StepPrediction step = Simulate(trace, {2, 1}, {2, 0}, ExchangeChoice::kFixed);
  EXPECT_THAT(step.pairs, ElementsAre(2, 2));
  EXPECT_THAT(step.copies, ElementsAre(2, 0));
}

TEST(SimulatorTest, PlacementByLoadEvensASkewedLoad) {
  const model::Config config = SmallConfig(4, 32, 4);
  const RoutingTrace trace = DrawZipf(config, 2000, 1, 5);
  const auto imbalance = [&](const model::Placement& placement) {
    const Simulator simulator(config, placement, {4, 1}, OnlyExperts(), Instant());
    return simulator.Run(trace, 1000, {.rows = {64, 64, 64, 64}, .keys = 4}).pair_imbalance;
  };
  const std::vector<uint64_t> load = LoadOf(trace, 0, 1000);
  const double balanced = imbalance(model::BalancedPlacement(config, 4));
  EXPECT_GT(balanced, 1.3);
  EXPECT_LT(imbalance(model::PlacementFromLoad(config, 4, load, 0)), 1 + 0.6 * (balanced - 1));
}

TEST(SimulatorTest, ReplicasShareAnExpertThatAllTokensChoose) {
  const model::Config config = SmallConfig(1, 4, 2);
  const RoutingTrace trace = TwoChoices({0, 1});
  const std::vector<uint64_t> load = {100, 100, 0, 0};
  const auto imbalance = [&](int replicas) {
    const model::Placement placement = model::PlacementFromLoad(config, 4, load, replicas);
    const Simulator simulator(config, placement, {4, 1}, OnlyExperts(), Instant());
    return simulator.Run(trace, 0, {.rows = {8, 8, 8, 8}, .keys = 4}).pair_imbalance;
  };
  EXPECT_DOUBLE_EQ(imbalance(0), 2);
  EXPECT_LT(imbalance(4), 1.6);
}

TEST(SimulatorTest, RanksOfOtherNodesAreReachedOverTheNetwork) {
  const model::Config config = SmallConfig(1, 4, 2);
  const model::Placement placement = model::BalancedPlacement(config, 4);
  LinkProfile link = Instant();
  link.local.latency = 1;
  link.remote = {10, 1, 1e30};
  const auto seconds = [&](int ranks_per_node) {
    link.ranks_per_node = ranks_per_node;
    const Simulator simulator(config, placement, {4, 1}, OnlyExperts(), link);
    return simulator.Run(TwoChoices({0, 3}), 0, {.rows = {1, 1, 1, 1}, .keys = 4}).seconds;
  };
  EXPECT_DOUBLE_EQ(seconds(4), 1 + 2 * 1);
  EXPECT_DOUBLE_EQ(seconds(2), 1 + 2 * 12);  // two peers in the other node
  EXPECT_DOUBLE_EQ(seconds(1), 1 + 2 * 13);
}

TEST(SimulatorTest, RanksThatShareCoresTakeTurns) {
  const model::Config config = SmallConfig(1, 4, 2);
  const RoutingTrace trace = TwoChoices({0, 3, /**/ 1, 2});
  DeviceProfile device = OnlyExperts();
  device.cores = 2;
  device.contention = 0.5;
  const auto seconds = [&](int world) {
    const model::Placement placement = model::BalancedPlacement(config, world);
    const Simulator simulator(config, placement, {world, 1}, device, Instant());
    return simulator.Run(trace, 0, {.rows = std::vector<int>(world, 2), .keys = 4}).seconds;
  };
  EXPECT_DOUBLE_EQ(seconds(1), 1);
  EXPECT_DOUBLE_EQ(seconds(2), 1.5);
  EXPECT_DOUBLE_EQ(seconds(4), 3);
}

struct Measured {
  model::ParallelShape shape;
  int streams = 0;
  double tokens_per_second = 0;
};

void ExpectPredicted(const model::Config& config, const std::vector<Measured>& cases, int keys,
                     DeviceProfile (*device)(int world), const LinkProfile& link, double limit,
                     ExchangeChoice choice = ExchangeChoice::kAuto) {
  const RoutingTrace trace = DrawZipf(config, 1024, 0, 1);
  for (const auto& [shape, streams, measured] : cases) {
    const model::Placement placement = model::BalancedPlacement(config, shape.world());
    const Simulator simulator(config, placement, shape, device(shape.world()), link, choice);
    SimulatedStep step = {std::vector<int>(shape.dp, streams / shape.dp), keys};
    step.rows[0] += streams % shape.dp;
    const double predicted = streams / simulator.Run(trace, 0, step).seconds;
    EXPECT_NEAR(predicted / measured, 1, limit)
        << shape.dp << " x " << shape.tp << ", " << streams << " streams: " << predicted;
  }
}

// What serve_gpu.py and serve_cpu measured (docs/benchmarks.md).
TEST(SimulatorTest, PredictsWhatWasMeasuredOnOneAndTwoH100) {
  const auto config = model::LoadConfig("bench/configs/gpt_oss_120b");
  ASSERT_TRUE(config.ok()) << config.status();
  const std::vector<Measured> cases = {{{1, 1}, 1, 340},   {{1, 1}, 8, 1105},   {{1, 1}, 32, 2020},
                                       {{1, 1}, 64, 3007}, {{1, 1}, 128, 4664}, {{2, 1}, 1, 264},
                                       {{2, 1}, 32, 2965}, {{2, 1}, 128, 7756}, {{1, 2}, 1, 340},
                                       {{1, 2}, 8, 1436},  {{1, 2}, 32, 3085}};
  const auto device = [](int) { return H100Device(); };
  ExpectPredicted(*config, cases, 1100, device, NvLink(), 0.12);
  ExpectPredicted(*config, {{{2, 1}, 256, 9547}}, 1100, device, NvLink(), 0.12,
                  ExchangeChoice::kExact);
}

TEST(SimulatorTest, PredictsWhatWasMeasuredOnTwoCoresOverGloo) {
  auto config = model::LoadConfig("bench/configs/gpt_oss_20b");
  ASSERT_TRUE(config.ok()) << config.status();
  config->num_layers = 2;
  config->layer_types.resize(2);
  const std::vector<Measured> cases = {{{1, 1}, 1, 15.2},  {{1, 1}, 16, 40.5}, {{2, 1}, 1, 11.0},
                                       {{2, 1}, 16, 36.0}, {{1, 2}, 1, 15.6},  {{1, 2}, 16, 43.7}};
  ExpectPredicted(*config, cases, 16, TwoCoreCpu, Loopback(), 0.15);
}

}  // namespace
}  // namespace conclave::bench
