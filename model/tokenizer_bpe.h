#ifndef CONCLAVE_MODEL_TOKENIZER_BPE_H_
#define CONCLAVE_MODEL_TOKENIZER_BPE_H_

// The implementation of Tokenizer, made from what either file format says.

#include <memory>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"
#include "model/tokenizer_spec.h"

namespace conclave::model {

// INVALID_ARGUMENT names what contradicts: an id or a spelling given twice, a byte without a token.
absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(TokenizerSpec spec);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_BPE_H_
