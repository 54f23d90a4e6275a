#ifndef CONCLAVE_COORDINATOR_ADMISSION_PACE_H_
#define CONCLAVE_COORDINATOR_ADMISSION_PACE_H_

// How fast waiting requests are admitted: what a request at the end of the queue has to expect.

#include <cstddef>
#include <numeric>
#include <optional>
#include <vector>

#include "absl/time/time.h"

namespace conclave::coordinator {

// Owned by the scheduler thread.
class AdmissionPace {
 public:
  // A request was admitted. The time since the last one counts if somebody has waited ever since.
  void Admitted(absl::Time now) {
    if (last_.has_value()) {
      if (gaps_.size() < kGaps) {
        gaps_.push_back(now - *last_);
      } else {
        gaps_[next_] = now - *last_;
        next_ = (next_ + 1) % kGaps;
      }
    }
    last_ = now;
  }
  // Nobody waits.
  void Idle() { last_.reset(); }

  // Mean time between two admissions of late; zero as long as there were too few to tell.
  absl::Duration Gap() const {
    if (gaps_.size() < kFewest) return absl::ZeroDuration();
    return std::accumulate(gaps_.begin(), gaps_.end(), absl::ZeroDuration()) /
           static_cast<int64_t>(gaps_.size());
  }

 private:
  static constexpr size_t kGaps = 64;
  static constexpr size_t kFewest = 8;
  std::vector<absl::Duration> gaps_;  // ring
  size_t next_ = 0;
  std::optional<absl::Time> last_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ADMISSION_PACE_H_
