#include "kernels/cpu/rope.h"

#include <cmath>

#include "base/check.h"

namespace conclave::kernels {

RotaryAngles::RotaryAngles(const model::Rope& rope, int head_dim)
    : half_(head_dim / 2),
      factor_(static_cast<float>(rope.attention_factor)),
      inverse_frequencies_(model::RopeInverseFrequencies(rope, head_dim)) {
  CONCLAVE_CHECK(static_cast<int64_t>(inverse_frequencies_.size()) == half_);
}

void RotaryAngles::SetPositions(std::span<const int32_t> positions) {
  cos_.resize(positions.size() * half_);
  sin_.resize(positions.size() * half_);
  size_t at = 0;
  for (const int32_t position : positions) {
    for (const float frequency : inverse_frequencies_) {
      // The float32 product, not the exact angle: that is what the references compute.
      const float angle = static_cast<float>(position) * frequency;
      cos_[at] = std::cos(angle) * factor_;
      sin_[at] = std::sin(angle) * factor_;
      ++at;
    }
  }
}

void RotaryAngles::Rotate(int64_t row, float* head) const {
  const float* cos = cos_.data() + row * half_;
  const float* sin = sin_.data() + row * half_;
  for (int64_t i = 0; i < half_; ++i) {
    const float a = head[i];
    const float b = head[i + half_];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half_] = b * cos[i] + a * sin[i];
  }
}

}  // namespace conclave::kernels
