#include "coordinator/progress.h"

#include <algorithm>

#include "base/clock.h"

namespace conclave::coordinator {

void ProgressWatch::StepDone(absl::Time now, absl::Duration step) {
  if (steps_.size() < kSteps) {
    steps_.push_back(step);
  } else {
    steps_[next_] = step;
    next_ = (next_ + 1) % kSteps;
  }
  last_ = now;
}

void ProgressWatch::SetBusy(bool busy, absl::Time now) {
  if (busy && !busy_) last_ = now;
  busy_ = busy;
}

Progress ProgressWatch::Get() const {
  const absl::Duration limit = std::max(absl::Seconds(10), 20 * MedianStep());
  return {.busy = busy_, .last = last_, .limit = limit * base::TimeScale()};
}

absl::Duration ProgressWatch::ShortestStep() const {
  return steps_.empty() ? absl::ZeroDuration() : *std::min_element(steps_.begin(), steps_.end());
}

absl::Duration ProgressWatch::MedianStep() const {
  if (steps_.empty()) return absl::ZeroDuration();
  std::vector<absl::Duration> sorted = steps_;
  const auto middle = sorted.begin() + sorted.size() / 2;
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

}  // namespace conclave::coordinator
