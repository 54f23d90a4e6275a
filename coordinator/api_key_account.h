#ifndef CONCLAVE_COORDINATOR_API_KEY_ACCOUNT_H_
#define CONCLAVE_COORDINATOR_API_KEY_ACCOUNT_H_

// What the requests of one API key use, and may use.

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"

namespace conclave::coordinator {

struct ApiKeyLimits {
  int max_requests = 0;           // sequences that wait or run; 0: no limit
  int64_t tokens_per_minute = 0;  // prompt and output; 0: no limit
};

// Thread-safe.
class ApiKeyAccount {
 public:
  // Borrows the clock.
  ApiKeyAccount(std::string name, const base::Clock& clock);

  const std::string& name() const { return name_; }

  void SetLimits(const ApiKeyLimits& limits);

  // Takes `requests` with so many prompt tokens together, or RESOURCE_EXHAUSTED: with a retry
  // delay, unless they are more than there may ever be. Tokens are charged when their number is
  // known and paid back over time: who has any left may overdraw, and then waits.
  absl::Status Take(int requests, int64_t prompt_tokens);
  // Once for each request taken: `output_tokens` were generated for it.
  void End(int64_t output_tokens);
  // Undoes a Take whose requests were refused after all.
  void PutBack(int requests, int64_t prompt_tokens);

 private:
  void Refill() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string name_;
  const base::Clock& clock_;
  absl::Mutex mutex_;  // guards all below
  ApiKeyLimits limits_ ABSL_GUARDED_BY(mutex_);
  int open_ ABSL_GUARDED_BY(mutex_) = 0;
  double tokens_ ABSL_GUARDED_BY(mutex_) = 0;  // left, at most those of a minute; may be negative
  absl::Time refilled_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_API_KEY_ACCOUNT_H_
