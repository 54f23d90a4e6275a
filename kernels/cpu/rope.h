#ifndef CONCLAVE_KERNELS_CPU_ROPE_H_
#define CONCLAVE_KERNELS_CPU_ROPE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"

namespace conclave::kernels {

// cos and sin of the rows of a step, both times the attention factor. Made anew for each step: a
// table of all positions would be tens of MiB.
class RotaryAngles {
 public:
  RotaryAngles(const model::Rope& rope, int head_dim);

  void SetPositions(std::span<const int32_t> positions);

  // Rotates one head in place: dimension i pairs with i + head_dim / 2. `row` of the step.
  void Rotate(int64_t row, float* head) const;

 private:
  int64_t half_;
  float factor_;
  std::vector<float> inverse_frequencies_;  // [half]
  std::vector<float> cos_;                  // [rows, half]
  std::vector<float> sin_;
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_ROPE_H_
