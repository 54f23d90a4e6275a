#ifndef CONCLAVE_COORDINATOR_STOP_STRINGS_H_
#define CONCLAVE_COORDINATOR_STOP_STRINGS_H_

// Finds stop strings in generated text, wherever tokens begin and end, on the scheduler's thread:
// the sequence ends with the very token that completes one, and nothing computed later is shown.
//
//   auto strings = std::make_shared<const StopStrings>(tokenizer, request.stop_strings);
//   StopMatcher matcher(strings);                    // one for each sequence
//   const StopMatch match = matcher.Append(token);   // in order
//   if (match.string >= 0) ... it ends here ...
//
// Texts are compared byte by byte. A character is never cut: stop strings are whole characters.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace conclave::coordinator {

// Immutable, shared by all matchers of a request.
class StopStrings {
 public:
  // Not empty, and none of them is.
  StopStrings(std::shared_ptr<const model::Tokenizer> tokenizer, std::vector<std::string> strings);

  int size() const { return static_cast<int>(patterns_.size()); }
  const std::string& string(int index) const { return patterns_[index].text; }
  std::string_view TokenBytes(int token) const { return tokenizer_->TokenBytes(token); }

 private:
  friend class StopMatcher;

  // Knuth, Morris and Pratt: of a text that ends with the first i bytes, the longest other prefix
  // that it ends with too has shorter[i] bytes.
  struct Pattern {
    std::string text;
    std::vector<int> shorter;  // [bytes + 1]
  };

  std::shared_ptr<const model::Tokenizer> tokenizer_;
  std::vector<Pattern> patterns_;
};

struct StopMatch {
  // The string that is complete, -1: none.
  int string = -1;
  // Bytes at the end of the text so far that are not to be shown: with a string, from its first
  // byte on, for ever; else, the longest beginning of one that the text ends with, for now.
  int held_bytes = 0;
};

// Not after a match.
class StopMatcher {
 public:
  explicit StopMatcher(std::shared_ptr<const StopStrings> strings);

  // With `ignore`, a string that is complete counts for nothing.
  StopMatch Append(int token, bool ignore = false);

 private:
  // The longest pattern that this byte completes, or -1.
  int Step(char byte);

  std::shared_ptr<const StopStrings> strings_;
  // [strings] bytes of each that the text ends with.
  std::vector<int> matched_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_STOP_STRINGS_H_
