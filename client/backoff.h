#ifndef CONCLAVE_CLIENT_BACKOFF_H_
#define CONCLAVE_CLIENT_BACKOFF_H_

// How long to wait before a child that ended is started again: longer each time, and short again
// once it has run for a while.

#include <algorithm>

#include "absl/time/time.h"

namespace conclave::client {

struct BackoffOptions {
  // Soon: a service with a lost worker answers nobody.
  absl::Duration first = absl::Milliseconds(500);
  absl::Duration most = absl::Seconds(15);
  // A child that lived this long had started well.
  absl::Duration stable = absl::Seconds(30);
};

class Backoff {
 public:
  explicit Backoff(const BackoffOptions& options) : options_(options), next_(options.first) {}

  // The delay before the next start of a child that lived for `lived`.
  absl::Duration Next(absl::Duration lived) {
    if (lived >= options_.stable) {
      next_ = options_.first;
      failures_ = 0;
    }
    ++failures_;
    const absl::Duration delay = next_;
    next_ = std::min(2 * next_, options_.most);
    return delay;
  }

  // Ends in a row, none of which came after a stable run.
  int failures() const { return failures_; }

 private:
  BackoffOptions options_;
  absl::Duration next_;
  int failures_ = 0;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BACKOFF_H_
