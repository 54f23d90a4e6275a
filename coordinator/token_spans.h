#ifndef CONCLAVE_COORDINATOR_TOKEN_SPANS_H_
#define CONCLAVE_COORDINATOR_TOKEN_SPANS_H_

// From token labels to spans of the text, as Transformers' "simple" aggregation groups them.

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::coordinator {

// One token's most likely label and its place in the text.
struct LabelledToken {
  std::string_view label;  // "B-PER", "I-PER", "PER" or "O"
  float score = 0;
  size_t start_byte = 0;
  size_t end_byte = 0;
};

struct LabelledSpan {
  std::string label;  // without B- or I-
  float score = 0;    // mean over its tokens
  size_t start_byte = 0;
  size_t end_byte = 0;
  size_t start_char = 0;  // in code points
  size_t end_char = 0;
};

// A token joins the open span when its tag equals the previous token's and it does not begin one
// (B-); a label without prefix counts as I-. Spans of "O" are left out. Ends that fall inside a
// UTF-8 character are moved outward to its bounds.
std::vector<LabelledSpan> GroupSpans(std::span<const LabelledToken> tokens, std::string_view text);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_TOKEN_SPANS_H_
