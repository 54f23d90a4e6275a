#ifndef CONCLAVE_COORDINATOR_SHOWN_TEXT_H_
#define CONCLAVE_COORDINATOR_SHOWN_TEXT_H_

// The text of one sequence as the client sees it: whole UTF-8 characters, and nothing that is, or
// may still become, a stop string.

#include <string>

#include "coordinator/engine.h"
#include "model/tokenizer.h"

namespace conclave::coordinator {

class ShownText {
 public:
  explicit ShownText(const model::Tokenizer& tokenizer)
      : tokenizer_(tokenizer), detokenizer_(tokenizer) {}

  // What can be shown now.
  std::string Append(const TokenEvent& event);
  // What is left at the end, an unfinished character as U+FFFD.
  std::string Finish();

 private:
  const model::Tokenizer& tokenizer_;
  model::IncrementalDetokenizer detokenizer_;
  std::string held_;  // bytes that may be a stop string's
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SHOWN_TEXT_H_
