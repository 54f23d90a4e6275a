#include "coordinator/scores.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave::coordinator {
namespace {

model::HeadConfig Head(int labels, model::ProblemType type) {
  model::HeadConfig head;
  head.labels.resize(labels, "x");
  head.problem_type = type;
  return head;
}

TEST(ScoresTest, FunctionFollowsProblemTypeThenNumberOfLabels) {
  using model::ProblemType;
  EXPECT_EQ(ScoreFunctionOf(Head(3, ProblemType::kUnset)), v1::SCORE_FUNCTION_SOFTMAX);
  EXPECT_EQ(ScoreFunctionOf(Head(3, ProblemType::kSingleLabel)), v1::SCORE_FUNCTION_SOFTMAX);
  EXPECT_EQ(ScoreFunctionOf(Head(3, ProblemType::kMultiLabel)), v1::SCORE_FUNCTION_SIGMOID);
  EXPECT_EQ(ScoreFunctionOf(Head(1, ProblemType::kUnset)), v1::SCORE_FUNCTION_SIGMOID);
  EXPECT_EQ(ScoreFunctionOf(Head(1, ProblemType::kRegression)), v1::SCORE_FUNCTION_NONE);
}

TEST(ScoresTest, SoftmaxSumsToOneAndSurvivesLargeLogits) {
  const std::vector<float> logits = {1000.0F, 1001.0F, 999.0F};
  const std::vector<float> scores = Scores(v1::SCORE_FUNCTION_SOFTMAX, logits);
  EXPECT_NEAR(scores[0] + scores[1] + scores[2], 1.0F, 1e-6F);
  EXPECT_NEAR(scores[1] / scores[0], std::exp(1.0F), 1e-5F);
}

TEST(ScoresTest, SigmoidAndNone) {
  const std::vector<float> logits = {0.0F, 2.0F};
  EXPECT_FLOAT_EQ(Scores(v1::SCORE_FUNCTION_SIGMOID, logits)[0], 0.5F);
  EXPECT_NEAR(Scores(v1::SCORE_FUNCTION_SIGMOID, logits)[1], 0.880797F, 1e-6F);
  EXPECT_EQ(Scores(v1::SCORE_FUNCTION_NONE, logits), logits);
}

}  // namespace
}  // namespace conclave::coordinator
