#ifndef CONCLAVE_BASE_CLOCK_H_
#define CONCLAVE_BASE_CLOCK_H_

// Time behind an interface, so that tests decide what time it is, and a clock that never jumps: an
// administrator who sets the date must not look like a lost worker.

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace conclave::base {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

// The wall clock as it was when the process first asked, moved on by the monotonic clock since:
// comparable with the deadlines of calls, which are wall time, and never set back. Thread-safe.
absl::Time SteadyNow();

class SteadyClock final : public Clock {
 public:
  absl::Time Now() const override { return SteadyNow(); }
};

// Moves only when told to.
class FakeClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_.fetch_add(absl::ToInt64Nanoseconds(by)); }

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

// Factor by which deadlines of liveness stretch: environment variable CONCLAVE_TEST_TIME_SCALE, set
// under sanitizers; 1 when unset.
double TimeScale();

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_CLOCK_H_
