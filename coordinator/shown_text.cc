#include "coordinator/shown_text.h"

#include <string_view>

#include "base/check.h"

namespace conclave::coordinator {

std::string ShownText::Append(const TokenEvent& event) {
  if (event.is_stop) return {};
  held_ += tokenizer_.TokenBytes(event.token);
  const auto hidden = static_cast<size_t>(event.held_bytes);
  CONCLAVE_CHECK(hidden <= held_.size());
  const size_t shown = held_.size() - hidden;
  std::string text = detokenizer_.AppendBytes(std::string_view(held_).substr(0, shown));
  held_.erase(0, event.stop_string ? held_.size() : shown);
  return text;
}

std::string ShownText::Finish() {
  std::string text = detokenizer_.AppendBytes(held_);
  held_.clear();
  return text + detokenizer_.Finish();
}

}  // namespace conclave::coordinator
