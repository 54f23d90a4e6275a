#include "coordinator/scores.h"

#include <algorithm>
#include <cmath>

namespace conclave::coordinator {
namespace {

std::vector<float> Softmax(std::span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<float> scores;
  double sum = 0;
  for (float logit : logits) {
    scores.push_back(std::exp(logit - max));
    sum += scores.back();
  }
  for (float& score : scores) score = static_cast<float>(score / sum);
  return scores;
}

}  // namespace

v1::ScoreFunction ScoreFunctionOf(const model::HeadConfig& head) {
  if (head.problem_type == model::ProblemType::kRegression) return v1::SCORE_FUNCTION_NONE;
  const bool sigmoid =
      head.problem_type == model::ProblemType::kMultiLabel || head.labels.size() == 1;
  return sigmoid ? v1::SCORE_FUNCTION_SIGMOID : v1::SCORE_FUNCTION_SOFTMAX;
}

std::vector<float> Scores(v1::ScoreFunction function, std::span<const float> logits) {
  if (function == v1::SCORE_FUNCTION_SOFTMAX) return Softmax(logits);
  std::vector<float> scores(logits.begin(), logits.end());
  if (function == v1::SCORE_FUNCTION_SIGMOID) {
    for (float& score : scores) score = 1.0F / (1.0F + std::exp(-score));
  }
  return scores;
}

}  // namespace conclave::coordinator
