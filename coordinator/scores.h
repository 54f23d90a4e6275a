#ifndef CONCLAVE_COORDINATOR_SCORES_H_
#define CONCLAVE_COORDINATOR_SCORES_H_

// Logits of a classification head to scores, by the rules of Transformers' pipelines.

#include <span>
#include <vector>

#include "model/config.h"
#include "proto/conclave/v1/classification.pb.h"

namespace conclave::coordinator {

// Regression: none. Multi-label, or a single label: sigmoid. Else softmax.
v1::ScoreFunction ScoreFunctionOf(const model::HeadConfig& head);

// [labels] -> [labels]
std::vector<float> Scores(v1::ScoreFunction function, std::span<const float> logits);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SCORES_H_
