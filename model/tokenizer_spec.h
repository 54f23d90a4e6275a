#ifndef CONCLAVE_MODEL_TOKENIZER_SPEC_H_
#define CONCLAVE_MODEL_TOKENIZER_SPEC_H_

// What a vocabulary file says, in either format; the tokenizer is made from this alone.

#include <memory>
#include <string>
#include <vector>

#include "model/bpe.h"
#include "model/split_pattern.h"

namespace conclave::model {

// A token that is found in the text before it is split, never made by merges.
struct AddedToken {
  int id = 0;
  std::string content;
  bool special = true;       // found only when asked for; else always
  bool encodes = true;       // false: a name for an id that no text becomes
  bool names_the_id = true;  // false: a second spelling
};

struct TokenizerSpec {
  BpeParts bpe;
  std::vector<AddedToken> added;
  // Each cuts the pieces of the one before. None: the text is one piece.
  std::vector<std::unique_ptr<Splitter>> splitters;
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_SPEC_H_
