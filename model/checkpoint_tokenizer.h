#ifndef CONCLAVE_MODEL_CHECKPOINT_TOKENIZER_H_
#define CONCLAVE_MODEL_CHECKPOINT_TOKENIZER_H_

// The tokenizer that belongs to a checkpoint.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace conclave::model {

// `file`, or `dir`/tokenizer.json when that is empty; null when there is none in `dir`.
// INVALID_ARGUMENT with the file and the numbers also when it has ids that the model has not.
absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadCheckpointTokenizer(const std::string& dir,
                                                                         const std::string& file,
                                                                         const Config& config);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_CHECKPOINT_TOKENIZER_H_
