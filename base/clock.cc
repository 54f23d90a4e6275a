#include "base/clock.h"

#include <chrono>
#include <cstdlib>

namespace conclave::base {

absl::Time SteadyNow() {
  using Monotonic = std::chrono::steady_clock;
  static const absl::Time wall = absl::Now();
  static const Monotonic::time_point start = Monotonic::now();
  return wall + absl::FromChrono(Monotonic::now() - start);
}

double TimeScale() {
  const char* text = std::getenv("CONCLAVE_TEST_TIME_SCALE");
  if (text == nullptr) return 1.0;
  const double scale = std::strtod(text, nullptr);
  return scale >= 1.0 ? scale : 1.0;
}

}  // namespace conclave::base
