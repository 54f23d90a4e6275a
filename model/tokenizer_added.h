#ifndef CONCLAVE_MODEL_TOKENIZER_ADDED_H_
#define CONCLAVE_MODEL_TOKENIZER_ADDED_H_

// Finds the spellings of added tokens in text: the leftmost, the longest among those.

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace conclave::model {

class AddedTokenMatcher {
 public:
  struct Match {
    size_t begin;
    size_t end;
    int id;
  };

  // `content` is not empty; the first id given for a content counts.
  void Add(std::string_view content, int id);
  bool empty() const { return ids_.empty(); }

  // The first match that starts at or after `from`. Thread-safe once all are added.
  std::optional<Match> Find(std::string_view text, size_t from) const;

 private:
  absl::flat_hash_map<std::string, int> ids_;  // by content
  std::array<bool, 256> starts_ = {};          // whether some content begins with this byte
  std::vector<size_t> lengths_;                // of contents, each once, longest first
};

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_TOKENIZER_ADDED_H_
