#ifndef CONCLAVE_COORDINATOR_HISTOGRAM_H_
#define CONCLAVE_COORDINATOR_HISTOGRAM_H_

// A histogram of durations as Prometheus counts them. Plain numbers: of one thread, copied to be
// read by others. Observe takes a few nanoseconds.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace conclave::coordinator {

struct Histogram {
  // Upper bounds of the buckets, inclusive, in seconds; one more bucket has no bound.
  static constexpr std::array<double, 21> kBounds = {
      0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
      0.5,    1,      2,      5,     10,    20,    50,   100,  200,  500};

  void Observe(absl::Duration duration) {
    const double seconds = absl::ToDoubleSeconds(duration);
    const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
    ++counts[static_cast<size_t>(bound - kBounds.begin())];
    sum += seconds;
  }

  std::array<uint64_t, kBounds.size() + 1> counts = {};  // of each bucket alone
  double sum = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_HISTOGRAM_H_
