#ifndef CONCLAVE_COORDINATOR_TOKEN_SPANS_H_
#define CONCLAVE_COORDINATOR_TOKEN_SPANS_H_

// From the scores of every token to labelled spans of the text, as Transformers'
// token-classification pipeline makes them.

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::coordinator {

enum class Aggregation {
  kNone,     // a span for each token
  kSimple,   // tokens of one tag, joined
  kFirst,    // words, labelled by their first token, then joined
  kAverage,  // words, labelled by the mean of their tokens' scores
  kMax,      // words, labelled by their most certain token
};

// Meaning of prefixes: B- begins a span, I- continues one; with kBioes E- ends the one that it
// continues and S- is one alone. Without a prefix a label continues a span of its own name.
enum class LabelScheme { kBio, kBioes };

// kBioes when some label begins with E- or S-.
LabelScheme SchemeOf(std::span<const std::string> labels);

// One token's scores and its place in the text.
struct ScoredToken {
  std::vector<float> scores;  // [labels]
  size_t start_byte = 0;
  size_t end_byte = 0;
};

struct LabelledSpan {
  std::string label;  // without its prefix; whole with kNone
  float score = 0;    // mean over its tokens or words
  size_t start_byte = 0;
  size_t end_byte = 0;
  size_t start_char = 0;  // in code points
  size_t end_char = 0;
};

struct SpanRules {
  Aggregation aggregation = Aggregation::kSimple;
  LabelScheme scheme = LabelScheme::kBio;
  std::vector<std::string> ignored = {"O"};  // labels of spans that are left out
};

// A token or word joins the open span when its tag equals the previous one's and neither begins or
// ends a span between them. A token begins a word at the beginning of the text and where the
// character before it, or its own first one, is a space. Ends that fall inside a UTF-8 character
// are moved outward to its bounds.
std::vector<LabelledSpan> MakeSpans(const SpanRules& rules, std::span<const std::string> labels,
                                    std::span<const ScoredToken> tokens, std::string_view text);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_TOKEN_SPANS_H_
