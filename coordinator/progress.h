#ifndef CONCLAVE_COORDINATOR_PROGRESS_H_
#define CONCLAVE_COORDINATOR_PROGRESS_H_

// Readiness is progress: while there is work, results must keep coming.

#include <cstddef>
#include <vector>

#include "absl/time/time.h"

namespace conclave::coordinator {

// What readiness is judged by; a value, to be published to other threads.
struct Progress {
  bool busy = false;
  absl::Time last;  // a result came, or work began
  absl::Duration limit;

  bool Stalled(absl::Time now) const { return busy && now - last > limit; }
};

// Owned by the scheduler thread.
class ProgressWatch {
 public:
  void StepDone(absl::Time now, absl::Duration step);
  // Told whether anything is queued or running whenever that may have changed.
  void SetBusy(bool busy, absl::Time now);
  // The limit is max(10 s, 20 x the median of the last steps): steps of a large model on a small
  // machine take seconds and are still progress.
  Progress Get() const;
  // Of the last steps; zero as long as there were none.
  absl::Duration ShortestStep() const;

 private:
  absl::Duration MedianStep() const;

  static constexpr size_t kSteps = 64;
  std::vector<absl::Duration> steps_;  // ring
  size_t next_ = 0;
  bool busy_ = false;
  absl::Time last_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_PROGRESS_H_
