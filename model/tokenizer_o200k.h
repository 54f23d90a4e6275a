#ifndef CONCLAVE_MODEL_TOKENIZER_O200K_H_
#define CONCLAVE_MODEL_TOKENIZER_O200K_H_

// The special tokens of o200k_harmony.

#include <vector>

#include "model/tokenizer_spec.h"

namespace conclave::model {

inline constexpr int kO200kRanks = 199'998;          // ordinary tokens 0..199997
inline constexpr int kO200kHarmonyTokens = 201'088;  // the model's vocabulary, specials included

// All of 199998..201087; <|reserved_200018|> is a second spelling of <|endofprompt|>.
std::vector<AddedToken> O200kHarmonySpecials();

// A released tokenizer.json lists the specials up to 200018 only; the ids after it are rows of
// padding that a model can still choose. When `added` is such a list, names for them (which no text
// encodes to); else nothing.
std::vector<AddedToken> O200kHarmonyPadding(const std::vector<AddedToken>& added, int vocab_size);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_O200K_H_
