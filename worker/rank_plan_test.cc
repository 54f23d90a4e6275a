#include "worker/rank_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::worker {
namespace {

using testing::HasSubstr;

model::Config TestConfig() {
  model::Config config;
  config.num_layers = 2;
  config.num_experts = 4;
  config.num_kv_heads = 2;
  config.num_heads = 4;
  return config;
}

internal::v1::Assignment TestAssignment() {
  internal::v1::Assignment assignment;
  assignment.set_rank(1);
  assignment.set_dp(2);
  assignment.set_tp(1);
  assignment.set_max_step_tokens(64);
  assignment.mutable_cache()->set_block_tokens(16);
  assignment.mutable_cache()->set_full_blocks(8);
  assignment.mutable_cache()->set_sliding_blocks(9);
  assignment.mutable_cache()->set_max_sequences(3);
  assignment.add_heads()->set_name("topic");
  assignment.mutable_heads(0)->set_dir("/heads/topic");
  for (int layer = 0; layer < 2; ++layer) {
    internal::v1::LayerPlacement& experts = *assignment.mutable_placement()->add_layers();
    for (int expert = 0; expert < 4; ++expert) experts.add_experts()->add_ranks(expert / 2);
  }
  assignment.mutable_placement()->mutable_layers(1)->mutable_experts(0)->add_ranks(1);
  return assignment;
}

TEST(RankPlan, TakesShapePlacementCacheAndHeads) {
  absl::StatusOr<RankPlan> plan = ParseAssignment(TestAssignment(), TestConfig());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->options.shape.dp, 2);
  EXPECT_EQ(plan->options.shape.tp, 1);
  EXPECT_EQ(plan->options.rank, 1);
  EXPECT_EQ(plan->options.max_step_tokens, 64);
  EXPECT_EQ(plan->options.max_sequences, 3);
  EXPECT_EQ(plan->options.full_blocks, 8);
  EXPECT_EQ(plan->options.sliding_blocks, 9);
  ASSERT_EQ(plan->placement.layers.size(), 2u);
  EXPECT_THAT(plan->placement.layers[0].ranks_of_expert[3], testing::ElementsAre(1));
  EXPECT_THAT(plan->placement.layers[1].ranks_of_expert[0], testing::ElementsAre(0, 1));
  ASSERT_EQ(plan->heads.size(), 1u);
  EXPECT_EQ(plan->heads[0].second, "/heads/topic");
}

TEST(RankPlan, RefusesWhatDoesNotFitTheModelAndSaysWhat) {
  const auto refusal = [](const auto& change) {
    internal::v1::Assignment assignment = TestAssignment();
    change(assignment);
    absl::StatusOr<RankPlan> plan = ParseAssignment(assignment, TestConfig());
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  using A = internal::v1::Assignment;
  EXPECT_THAT(refusal([](A& a) { a.set_rank(2); }), HasSubstr("rank 2 of dp 2 x tp 1"));
  EXPECT_THAT(refusal([](A& a) { a.set_tp(0); }), HasSubstr("tp 0"));
  EXPECT_THAT(refusal([](A& a) { a.set_dp(0xffffffff), a.set_tp(0xffffffff); }),
              HasSubstr("4 experts"));
  EXPECT_THAT(refusal([](A& a) { a.set_max_step_tokens(0); }), HasSubstr("max_step_tokens is 0"));
  EXPECT_THAT(refusal([](A& a) { a.mutable_cache()->set_full_blocks(0x80000000); }),
              HasSubstr("cache.full_blocks is 2147483648"));
  EXPECT_THAT(refusal([](A& a) { a.mutable_placement()->mutable_layers()->RemoveLast(); }),
              HasSubstr("1 layers, the model has 2"));
  const auto experts = [](A& a) { return a.mutable_placement()->mutable_layers(1); };
  EXPECT_THAT(refusal([&](A& a) { experts(a)->mutable_experts()->RemoveLast(); }),
              HasSubstr("layer 1 has 3 experts, the model 4"));
  EXPECT_THAT(refusal([&](A& a) { experts(a)->mutable_experts(3)->clear_ranks(); }),
              HasSubstr("layer 1, expert 3: no rank holds it"));
  EXPECT_THAT(refusal([&](A& a) { experts(a)->mutable_experts(2)->set_ranks(0, 2); }),
              HasSubstr("layer 1, expert 2: rank 2 is out of order or not below 2"));
  EXPECT_THAT(refusal([&](A& a) { experts(a)->mutable_experts(0)->set_ranks(1, 0); }),
              HasSubstr("layer 1, expert 0: rank 0"));
}

}  // namespace
}  // namespace conclave::worker
