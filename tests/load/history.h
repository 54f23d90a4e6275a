#ifndef CONCLAVE_TESTS_LOAD_HISTORY_H_
#define CONCLAVE_TESTS_LOAD_HISTORY_H_

// What a client saw of its streams, as lines of text, one event each:
//
//   stream ID WORK COMPLETIONS MAX_TOKENS ACTION AFTER      the request, and what the client means
//                                                           to do with it
//   tokens MICROS INDEX ID ...                              a response of completion INDEX
//   finish MICROS INDEX REASON TOKENS CACHED                its finish, after the same response's
//                                                           tokens
//   end MICROS CODE                                         the call's status, a gRPC code
//
// MICROS counts from the start of the call. ACTION is read, cancel (after AFTER responses) or
// deadline (AFTER microseconds). WORK is a number that determines the request but for its
// max_tokens. A history of truths has one line for each completion of each WORK, computed alone:
//
//   truth WORK INDEX ID ...

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::tests {

struct Event {
  enum class Kind { kTokens, kFinish, kEnd };
  Kind kind = Kind::kTokens;
  int64_t micros = 0;
  int index = 0;
  std::vector<uint32_t> tokens = {};  // kTokens
  std::string reason = {};            // kFinish: stop, length or cancelled
  int count = 0;                      // kFinish: completion tokens
  int cached = 0;                     // kFinish: cached tokens
  int code = 0;                       // kEnd
};

struct Stream {
  int id = 0;
  int work = 0;
  int completions = 1;
  int max_tokens = 0;
  std::string action = "read";
  int64_t after = 0;
  std::vector<Event> events;
};

using Truths = std::map<std::pair<int, int>, std::vector<uint32_t>>;  // by work and index

void Write(const Stream& stream, std::ostream& out);
void WriteTruths(const Truths& truths, std::ostream& out);

// INVALID_ARGUMENT with the number of the line that is not as above.
absl::StatusOr<std::vector<Stream>> ParseHistory(std::istream& in);
absl::StatusOr<Truths> ParseTruths(std::istream& in);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_LOAD_HISTORY_H_
