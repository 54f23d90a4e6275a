#ifndef CONCLAVE_TESTS_LOAD_LOAD_CLIENT_H_
#define CONCLAVE_TESTS_LOAD_LOAD_CLIENT_H_

// A client process of the load test: keeps a number of streams going for a time, and records what
// it sees of each.

#include <string>

#include "absl/time/time.h"

namespace conclave::tests {

struct LoadOptions {
  std::string server;
  std::string history;  // file that is written
  int streams = 1;      // at once
  int works = 1;        // kinds of requests (workload.h)
  absl::Duration duration;
  uint32_t seed = 0;
  // Of a hundred streams: cancelled at a random moment, given a deadline that many cannot make.
  int percent_cancelled = 20;
  int percent_deadlines = 10;
};

// Returns when all streams have ended; an exit code. A stream that was refused is tried again after
// the delay that the server asked for.
int RunLoad(const LoadOptions& options);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_LOAD_LOAD_CLIENT_H_
