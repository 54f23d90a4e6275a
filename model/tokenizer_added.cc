#include "model/tokenizer_added.h"

#include <algorithm>
#include <cstdint>
#include <functional>

#include "absl/strings/string_view.h"

namespace conclave::model {

void AddedTokenMatcher::Add(std::string_view content, int id) {
  ids_.emplace(content, id);
  starts_[static_cast<uint8_t>(content[0])] = true;
  const auto place =
      std::lower_bound(lengths_.begin(), lengths_.end(), content.size(), std::greater<>());
  if (place == lengths_.end() || *place != content.size()) lengths_.insert(place, content.size());
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::Find(std::string_view text,
                                                                size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
    for (const size_t length : lengths_) {
      if (length > text.size() - begin) continue;
      const auto it = ids_.find(absl::string_view(text.data() + begin, length));
      if (it != ids_.end()) return Match{begin, begin + length, it->second};
    }
  }
  return std::nullopt;
}

}  // namespace conclave::model
