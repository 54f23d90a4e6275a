#include "kernels/cpu/norm.h"

#include <cmath>

#include "kernels/cpu/bf16.h"

namespace conclave::kernels {
namespace {

// In float64, in a fixed order that the compiler can keep in vector registers.
double SumOfSquares(const float* x, int64_t size) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (int j = 0; j < kSums; ++j) sums[j] += double{x[i + j]} * double{x[i + j]};
  }
  for (; i < size; ++i) sums[i % kSums] += double{x[i]} * double{x[i]};
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

void RmsNorm(const float* x, const uint16_t* weight, int64_t size, double epsilon, float* out) {
  const double mean = SumOfSquares(x, size) / static_cast<double>(size);
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean + epsilon));
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] * scale * Bf16ToFloat(weight[i]);
}

}  // namespace conclave::kernels
