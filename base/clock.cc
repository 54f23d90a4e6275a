#include "base/clock.h"

#include <cstdlib>

namespace conclave::base {

double TimeScale() {
  const char* text = std::getenv("CONCLAVE_TEST_TIME_SCALE");
  if (text == nullptr) return 1.0;
  const double scale = std::strtod(text, nullptr);
  return scale >= 1.0 ? scale : 1.0;
}

}  // namespace conclave::base
