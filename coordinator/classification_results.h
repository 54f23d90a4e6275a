#ifndef CONCLAVE_COORDINATOR_CLASSIFICATION_RESULTS_H_
#define CONCLAVE_COORDINATOR_CLASSIFICATION_RESULTS_H_

// From a head's logits to the results of the classification methods.

#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "coordinator/classification_inputs.h"
#include "coordinator/serving_model.h"
#include "coordinator/token_spans.h"
#include "proto/conclave/v1/classification.pb.h"

namespace conclave::coordinator {

struct SequenceOptions {
  v1::ScoreFunction function = v1::SCORE_FUNCTION_SOFTMAX;
  std::optional<uint32_t> top_k;
};

// INVALID_ARGUMENT names the field.
absl::StatusOr<SequenceOptions> TranslateOptions(const v1::ClassifySequenceRequest& request,
                                                 const model::HeadConfig& head);
absl::StatusOr<SpanRules> TranslateOptions(const v1::ClassifyTokensRequest& request,
                                           const model::HeadConfig& head);

// `logits` [labels]. All but the usage.
v1::SequenceClassification ClassifySequence(const SequenceOptions& options,
                                            const model::HeadConfig& head,
                                            std::span<const float> logits);

// `logits` [tokens, labels]. All but the usage.
v1::TokenClassification ClassifyTokens(const ServingModel& model, const SpanRules& rules,
                                       const model::HeadConfig& head,
                                       const ClassificationInput& input,
                                       std::span<const float> logits);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLASSIFICATION_RESULTS_H_
