#include "coordinator/exchange_policy.h"

#include "gtest/gtest.h"
#include "model/row_bucket.h"

namespace conclave::coordinator {
namespace {

using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;

ExchangePolicy Auto(int dp, int tp, int max_step_tokens = 512) {
  return *ExchangePolicy::Create(ExchangeChoice::kAuto, {.dp = dp, .tp = tp}, max_step_tokens);
}

TEST(ExchangePolicy, DecodeUsesFixedCapacityAndPrefillExactCounts) {
  EXPECT_EQ(Auto(4, 1).Decide({{3, 1}, {0, 0}, {1, 1}, {2, 1}}).mode, EXCHANGE_MODE_FIXED);
  EXPECT_EQ(Auto(4, 1).Decide({{3, 1}, {0, 0}, {9, 7}, {2, 1}}).mode, EXCHANGE_MODE_EXACT);
}

TEST(ExchangePolicy, ManyRanksWithManyRowsSendNoPadding) {
  const auto mode = [](int dp, int tp, int rows) {
    std::vector<GroupRows> groups(dp, GroupRows{1, 1});
    groups[0].rows = rows;
    return Auto(dp, tp, 4096).Decide(groups).mode;
  };
  EXPECT_EQ(mode(4, 1, 512), EXCHANGE_MODE_FIXED);
  EXPECT_EQ(mode(4, 1, 513), EXCHANGE_MODE_EXACT);
  EXPECT_EQ(mode(2, 4, 1024), EXCHANGE_MODE_FIXED);
  EXPECT_EQ(mode(2, 4, 1025), EXCHANGE_MODE_EXACT);
  EXPECT_EQ(mode(32, 1, 64), EXCHANGE_MODE_FIXED);
  EXPECT_EQ(mode(32, 1, 65), EXCHANGE_MODE_EXACT);
}

TEST(ExchangePolicy, OneGroupWithFewTokensKeepsItsActivationsReplicated) {
  EXPECT_EQ(Auto(1, 4).Decide({{1, 1}}).mode, EXCHANGE_MODE_REPLICATED);
  EXPECT_EQ(Auto(1, 4).Decide({{64, 50}}).mode, EXCHANGE_MODE_REPLICATED);
  EXPECT_EQ(Auto(1, 4).Decide({{65, 50}}).mode, EXCHANGE_MODE_EXACT);
  EXPECT_EQ(Auto(1, 1).Decide({{1, 1}}).mode, EXCHANGE_MODE_FIXED);
  EXPECT_EQ(Auto(2, 2).Decide({{1, 1}, {1, 1}}).mode, EXCHANGE_MODE_FIXED);
}

TEST(ExchangePolicy, TheBucketIsThePowerOfTwoThatHoldsTheLargestRank) {
  EXPECT_EQ(Auto(2, 1).Decide({{0, 0}, {1, 1}}).bucket, 1);
  EXPECT_EQ(Auto(2, 1).Decide({{5, 1}, {3, 1}}).bucket, 8);
  EXPECT_EQ(Auto(2, 1).Decide({{8, 1}, {3, 1}}).bucket, 8);
  // Nine rows over two ranks: five on one of them.
  EXPECT_EQ(Auto(2, 2).Decide({{9, 1}, {3, 1}}).bucket, 8);
  EXPECT_EQ(Auto(2, 2).Decide({{8, 1}, {3, 1}}).bucket, 4);
}

// A GPU rounds decode rows up to a bucket of its own before it cuts them over the tp ranks.
TEST(ExchangePolicy, TheBucketHoldsAnyRanksShareOfTheRowsThatAGpuPadsTo) {
  for (int tp = 1; tp <= 8; ++tp) {
    for (int rows = 1; rows <= 512; ++rows) {
      const int padded = model::RowBucket(rows);
      const int share = (padded + tp - 1) / tp;
      const ExchangeDecision decision = Auto(2, tp).Decide({{rows, 1}, {0, 0}});
      EXPECT_GE(decision.bucket, share) << rows << " rows over tp " << tp;
    }
  }
  EXPECT_EQ(Auto(2, 3).Decide({{9, 1}, {0, 0}}).bucket, 8);  // 16 rows, 6 on one of them
}

TEST(ExchangePolicy, TheBucketNeverPassesWhatARankCanDispatch) {
  EXPECT_EQ(Auto(2, 1, 100).Decide({{100, 1}, {0, 0}}).bucket, 100);
  EXPECT_EQ(Auto(2, 2, 100).Decide({{100, 1}, {0, 0}}).bucket, 50);
}

TEST(ExchangePolicy, AChosenModeIsKeptWhateverTheStep) {
  const model::ParallelShape shape{.dp = 1, .tp = 2};
  for (const auto& [choice, mode] :
       {std::pair(ExchangeChoice::kFixed, EXCHANGE_MODE_FIXED),
        std::pair(ExchangeChoice::kExact, EXCHANGE_MODE_EXACT),
        std::pair(ExchangeChoice::kReplicated, EXCHANGE_MODE_REPLICATED)}) {
    const auto policy = ExchangePolicy::Create(choice, shape, 512);
    ASSERT_TRUE(policy.ok());
    EXPECT_EQ(policy->Decide({{1, 1}}).mode, mode);
    EXPECT_EQ(policy->Decide({{500, 500}}).mode, mode);
  }
}

TEST(ExchangePolicy, ReplicatedIsRefusedWhereGroupsDiffer) {
  const auto policy = ExchangePolicy::Create(ExchangeChoice::kReplicated, {.dp = 2, .tp = 2}, 512);
  EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ExchangePolicy::Create(ExchangeChoice::kReplicated, {.dp = 1, .tp = 1}, 512).ok());
}

TEST(ExchangePolicy, AnUnknownChoiceIsNamedInTheError) {
  EXPECT_EQ(*ParseExchangeChoice("auto"), ExchangeChoice::kAuto);
  EXPECT_EQ(*ParseExchangeChoice("replicated"), ExchangeChoice::kReplicated);
  const auto unknown = ParseExchangeChoice("quick");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.status().ToString().find("'quick'"), std::string::npos);
}

}  // namespace
}  // namespace conclave::coordinator
