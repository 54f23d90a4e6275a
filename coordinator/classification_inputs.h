#ifndef CONCLAVE_COORDINATOR_CLASSIFICATION_INPUTS_H_
#define CONCLAVE_COORDINATOR_CLASSIFICATION_INPUTS_H_

// Inputs of the classification methods to token ids: pairs, truncation, the position that is read.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/classification.pb.h"

namespace conclave::coordinator {

struct ClassificationInput {
  std::vector<int32_t> tokens;
  std::string text;  // what token offsets count in
  bool truncated = false;
};

// INVALID_ARGUMENT for an empty input, or one that is too long when `truncate` is off. `field` is
// its path.
absl::StatusOr<ClassificationInput> TranslateInput(const ServingModel& model,
                                                   const v1::Prompt& prompt, bool truncate,
                                                   const std::string& field);

// The tokens of both, one after the other.
absl::StatusOr<ClassificationInput> TranslatePair(const ServingModel& model,
                                                  const v1::Prompt& first, const v1::Prompt& second,
                                                  bool truncate, const std::string& first_field,
                                                  const std::string& second_field);

// Cuts a pair to `limit` tokens in all: the longer one first, down to equal lengths (where the
// limit is odd, the second keeps one more, unless the first was the longer).
void TruncatePair(std::vector<int32_t>& first, std::vector<int32_t>& second, size_t limit);

// The last token that is not padding, as Transformers pools; the last one when no padding token is
// known, the first when all are padding.
int PooledPosition(const model::Config& config, const std::vector<int32_t>& tokens);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLASSIFICATION_INPUTS_H_
