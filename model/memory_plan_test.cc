#include "model/memory_plan.h"

#include "gtest/gtest.h"
#include "model/checkpoint_testing.h"

namespace conclave::model {
namespace {

class MemoryPlanTest : public ChangedCheckpointTest {
 protected:
  std::vector<RankBytes> Plan(const std::string& dir, const ParallelShape& shape) {
    config_ = *LoadConfig(dir);
    const auto checkpoint = Checkpoint::Open(dir, config_);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return {};
    return PlanWeights(config_, **checkpoint, shape, BalancedPlacement(config_, shape.world()));
  }
};

// 2,893,248 is the total_size of the demo's index.
TEST_F(MemoryPlanTest, OneRankReadsTheWholeCheckpoint) {
  const std::vector<RankBytes> plan = Plan(kDemoDir, {1, 1});
  ASSERT_EQ(plan.size(), 1u);
  // Per expert: gate_up 192 rows, down 128; blocks, scales and bias of each.
  EXPECT_EQ(plan[0].experts, 4 * 16 * (192 * (4 * 17 + 2) + 128 * (3 * 17 + 2)));
  EXPECT_EQ(plan[0].embedding, 2 * 512 * 128 * 2);
  EXPECT_EQ(plan[0].total(), 2893248);
}

TEST_F(MemoryPlanTest, DataParallelRanksShareOnlyTheExperts) {
  const RankBytes whole = Plan(kDemoDir, {1, 1})[0];
  const std::vector<RankBytes> plan = Plan(kDemoDir, {3, 1});
  ASSERT_EQ(plan.size(), 3u);
  for (const RankBytes& rank : plan) {
    EXPECT_EQ(rank.attention, whole.attention);
    EXPECT_EQ(rank.embedding, whole.embedding);
  }
  EXPECT_EQ(plan[0].experts, whole.experts / 16 * 6);
  EXPECT_EQ(plan[1].experts, whole.experts / 16 * 5);
  EXPECT_EQ(plan[0].experts + plan[1].experts + plan[2].experts, whole.experts);
}

TEST_F(MemoryPlanTest, TensorParallelRanksShareHeadsAndVocabulary) {
  const RankBytes whole = Plan(kDemoDir, {1, 1})[0];
  const std::vector<RankBytes> plan = Plan(kDemoDir, {1, 2});
  EXPECT_EQ(plan[0].embedding + plan[1].embedding, whole.embedding);
  EXPECT_EQ(plan[0].experts + plan[1].experts, whole.experts);
  // Norms and router are on both; the bias of o_proj on the first.
  const int64_t on_both = 128 * 2 + 4 * (2 * 128 * 2 + 16 * 128 * 2 + 16 * 2);
  EXPECT_EQ(plan[0].attention + plan[1].attention, whole.attention + on_both);
  EXPECT_EQ(plan[0].attention - plan[1].attention, 4 * 128 * 2);
}

TEST_F(MemoryPlanTest, TiedEmbeddingCountsOnce) {
  Remove("lm_head.weight");
  config_json_["tie_word_embeddings"] = true;
  Write();
  EXPECT_EQ(Plan(dir_, {1, 1})[0].embedding, 512 * 128 * 2);
}

TEST_F(MemoryPlanTest, OwnHeadIsWholeOnEveryRank) {
  Remove("lm_head.weight");
  config_json_["architectures"] = {"GptOssForTokenClassification"};
  AddBf16("score.weight", {2, 128});
  AddBf16("score.bias", {2});
  Write();
  const std::vector<RankBytes> plan = Plan(dir_, {1, 2});
  EXPECT_EQ(plan[1].embedding, 256 * 128 * 2 + 2 * 128 * 2 + 2 * 2);
}

TEST_F(MemoryPlanTest, KvBytesFollowTheHeadsOfARank) {
  config_.num_kv_heads = 8;
  config_.head_dim = 64;
  EXPECT_EQ(KvBytesPerTokenLayer(config_, 1, 2), 2048);
  EXPECT_EQ(KvBytesPerTokenLayer(config_, 4, 2), 512);
  EXPECT_EQ(KvBytesPerTokenLayer(config_, 1, 4), 4096);
}

}  // namespace
}  // namespace conclave::model
