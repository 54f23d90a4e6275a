#ifndef CONCLAVE_COORDINATOR_REFUSAL_LOG_H_
#define CONCLAVE_COORDINATOR_REFUSAL_LOG_H_

// Lines of calls that were refused for what they brought as proof of who they are. Anybody may make
// such calls, as many as they like: the log gets some of them, and how many it did not get.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace conclave::coordinator {

// Of one port. Thread-safe.
class RefusalLog {
 public:
  explicit RefusalLog(std::string port) : port_(std::move(port)) {}

  // Logs the refusal, or counts it for the next line. `method` is the caller's to choose.
  void Note(std::string_view method, const absl::Status& status);
  // The line that Note logs at `now`: a few at once, then one each second.
  std::optional<std::string> Line(std::string_view method, const absl::Status& status,
                                  absl::Time now);

 private:
  const std::string port_;
  absl::Mutex mutex_;                         // guards all below
  double lines_ ABSL_GUARDED_BY(mutex_) = 0;  // that may be written
  absl::Time refilled_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REFUSAL_LOG_H_
