#ifndef CONCLAVE_MODEL_TOKENIZER_JSON_H_
#define CONCLAVE_MODEL_TOKENIZER_JSON_H_

// Reads the contents of a tokenizer.json.

#include <string_view>

#include "absl/status/statusor.h"
#include "model/tokenizer_spec.h"

namespace conclave::model {

// INVALID_ARGUMENT names the field.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(std::string_view text);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_JSON_H_
