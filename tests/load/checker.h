#ifndef CONCLAVE_TESTS_LOAD_CHECKER_H_
#define CONCLAVE_TESTS_LOAD_CHECKER_H_

// Judges histories by what the service guarantees (docs/architecture.md):
//
//   1. A stream ends exactly once, each of its completions with one finish if the call is OK;
//      nothing follows an end, no token follows a finish.
//   2. Tokens arrive in order, none twice, none lost: what arrived is a prefix of the truth, and
//      the whole of it, to max_tokens or its stop, where a finish says so.
//   3. A call past its deadline ends soon after it, with nothing but DEADLINE_EXCEEDED; a cancelled
//      one ends CANCELLED.
//   4. The tokens are those of the same request computed alone: by 2, whatever the load.

#include <cstdint>
#include <string>
#include <vector>

#include "tests/load/history.h"

namespace conclave::tests {

struct CheckLimits {
  // From the deadline to the end that the client sees.
  int64_t deadline_slack_micros = 1'000'000;
  // To the first token of a call that is only read, if it ends OK.
  int64_t longest_first_token_micros = 60'000'000;
};

struct CheckReport {
  std::vector<std::string> violations;
  int streams = 0;
  int finished = 0;   // calls that ended OK
  int cancelled = 0;  // by the client
  int expired = 0;    // DEADLINE_EXCEEDED
  int refused = 0;    // RESOURCE_EXHAUSTED, without a token
  int64_t tokens = 0;
  int64_t cached_tokens = 0;
  int64_t median_first_token_micros = 0;
  int64_t longest_first_token_micros = 0;
  // The longest time between two responses of a call that is only read, once it has begun.
  int64_t longest_pause_micros = 0;
};

CheckReport Check(const Truths& truths, const std::vector<Stream>& streams,
                  const CheckLimits& limits);

// A few lines for people.
std::string Describe(const CheckReport& report);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_LOAD_CHECKER_H_
