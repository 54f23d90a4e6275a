#ifndef CONCLAVE_BASE_ONE_LINE_H_
#define CONCLAVE_BASE_ONE_LINE_H_

#include <string>
#include <string_view>

namespace conclave::base {

// `text` as one line for a terminal or a log: valid UTF-8, control characters turned into spaces,
// none at the end, cut with "..." after about 1000 bytes. Messages quote files and requests, which
// may hold anything.
std::string OneLine(std::string_view text);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_ONE_LINE_H_
