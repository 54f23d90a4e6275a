#ifndef CONCLAVE_COORDINATOR_SCORE_LABELS_H_
#define CONCLAVE_COORDINATOR_SCORE_LABELS_H_

// Labels scored by the language model: a request per label that computes the input followed by the
// label and reads the log-probabilities of the label's tokens. Requests of one input are forks:
// they share its KV blocks.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/classification.pb.h"

namespace conclave::coordinator {

struct LabelQuestions {
  // Tokens of the inputs, and of the null prompt after them where there is one.
  std::vector<std::vector<int32_t>> prompts;
  bool calibrated = false;
  std::vector<std::string> labels;
  std::vector<std::vector<int32_t>> label_tokens;  // [labels]
  v1::ScoreBy score_by = v1::SCORE_BY_SUM;
  Request claim;  // priority and user, of every label
};

// INVALID_ARGUMENT names the field. `peer` is the client's address, as gRPC tells it.
absl::StatusOr<LabelQuestions> TranslateScoreLabels(const ServingModel& model,
                                                    const v1::ScoreLabelsRequest& request,
                                                    const std::string& peer);

// [prompts][labels]; all but the sinks and deadlines.
std::vector<std::vector<Request>> LabelRequests(const LabelQuestions& questions);

// `logprobs`: of each request's label tokens, [prompts * labels].
v1::ScoreLabelsResponse ScoreLabels(const LabelQuestions& questions,
                                    std::span<const std::vector<float>> logprobs);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SCORE_LABELS_H_
