#ifndef CONCLAVE_MODEL_SPLIT_PATTERN_H_
#define CONCLAVE_MODEL_SPLIT_PATTERN_H_

// Cuts text into the pieces that byte-pair merges never cross.
//
//   ASSIGN_OR_RETURN(auto splitter, MakeSplitter(kO200kPattern));
//   for (size_t begin = 0, end; begin < text.size(); begin = end) {
//     end = splitter->PieceEnd(text, begin);
//     ... text.substr(begin, end - begin) ...
//   }

#include <cstddef>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::model {

// Immutable; every method is thread-safe.
class Splitter {
 public:
  virtual ~Splitter() = default;

  // End of the piece that begins at `begin`: in (begin, text.size()]. A match is a piece, and so is
  // the text between two matches: nothing is lost. `text` is valid UTF-8, `begin` < text.size() is
  // 0 or a result of an earlier call for the same text.
  virtual size_t PieceEnd(std::string_view text, size_t begin) const = 0;
};

// The pattern of o200k_base and o200k_harmony.
extern const std::string_view kO200kPattern;
// What tokenizer.json's ByteLevel pre-tokenizer splits by when `use_regex` is true.
extern const std::string_view kByteLevelPattern;

// The hand-written matcher for kO200kPattern, PCRE2 for any other. INVALID_ARGUMENT says what is
// wrong with the pattern and where.
absl::StatusOr<std::unique_ptr<Splitter>> MakeSplitter(std::string_view pattern);

// The two behind it. PCRE2 works within fixed limits: text on which the pattern exceeds them stays
// in one piece. \s is Unicode's White_Space; what means different things to different regex engines
// (\w, \b, \h, their opposites, && in a set) is refused.
std::unique_ptr<Splitter> MakeO200kSplitter();
absl::StatusOr<std::unique_ptr<Splitter>> MakePcre2Splitter(std::string_view pattern);

// Splits at every occurrence of a fixed string.
absl::StatusOr<std::unique_ptr<Splitter>> MakeLiteralSplitter(std::string_view literal);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_SPLIT_PATTERN_H_
