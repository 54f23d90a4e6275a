#ifndef CONCLAVE_MODEL_TOKENIZER_TIKTOKEN_H_
#define CONCLAVE_MODEL_TOKENIZER_TIKTOKEN_H_

// Reads the contents of o200k_base.tiktoken, lines of "base64 rank"; everything else is
// o200k_harmony's.

#include <string_view>

#include "absl/status/statusor.h"
#include "model/tokenizer_spec.h"

namespace conclave::model {

// INVALID_ARGUMENT names the line.
absl::StatusOr<TokenizerSpec> ParseO200kTiktoken(std::string_view text);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_TIKTOKEN_H_
