#include "coordinator/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace conclave::coordinator {

StopStrings::StopStrings(std::shared_ptr<const model::Tokenizer> tokenizer,
                         std::vector<std::string> strings)
    : tokenizer_(std::move(tokenizer)) {
  for (std::string& string : strings) {
    CONCLAVE_CHECK(!string.empty());
    Pattern& pattern = patterns_.emplace_back();
    pattern.text = std::move(string);
    const int bytes = static_cast<int>(pattern.text.size());
    pattern.shorter.assign(bytes + 1, 0);
    for (int i = 1, length = 0; i < bytes; ++i) {
      while (length > 0 && pattern.text[i] != pattern.text[length]) {
        length = pattern.shorter[length];
      }
      if (pattern.text[i] == pattern.text[length]) ++length;
      pattern.shorter[i + 1] = length;
    }
  }
}

StopMatcher::StopMatcher(std::shared_ptr<const StopStrings> strings)
    : strings_(std::move(strings)), matched_(strings_->size(), 0) {}

int StopMatcher::Step(char byte) {
  int complete = -1;
  for (int i = 0; i < strings_->size(); ++i) {
    const auto& [text, shorter] = strings_->patterns_[i];
    int& matched = matched_[i];
    const int bytes = static_cast<int>(text.size());
    if (matched == bytes) matched = shorter[matched];
    while (matched > 0 && text[matched] != byte) matched = shorter[matched];
    if (text[matched] == byte) ++matched;
    if (matched < bytes) continue;
    if (complete < 0 || text.size() > strings_->string(complete).size()) complete = i;
  }
  return complete;
}

StopMatch StopMatcher::Append(int token, bool ignore) {
  const std::string_view bytes = strings_->TokenBytes(token);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int complete = Step(bytes[i]);
    if (complete < 0 || ignore) continue;
    const size_t after = bytes.size() - 1 - i;
    return {complete, static_cast<int>(strings_->string(complete).size() + after)};
  }
  StopMatch match;
  for (int i = 0; i < strings_->size(); ++i) {
    const auto& pattern = strings_->patterns_[i];
    // A string that was complete, and ignored, is not the beginning of anything.
    const int matched = matched_[i] == static_cast<int>(pattern.text.size())
                            ? pattern.shorter[matched_[i]]
                            : matched_[i];
    match.held_bytes = std::max(match.held_bytes, matched);
  }
  return match;
}

}  // namespace conclave::coordinator
