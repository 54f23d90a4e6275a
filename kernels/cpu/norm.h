#ifndef CONCLAVE_KERNELS_CPU_NORM_H_
#define CONCLAVE_KERNELS_CPU_NORM_H_

#include <cstdint>

namespace conclave::kernels {

// out = x / sqrt(mean(x^2) + epsilon) * weight, all [size]; `weight` bf16. The weight is applied in
// float32. `out` may be `x`.
void RmsNorm(const float* x, const uint16_t* weight, int64_t size, double epsilon, float* out);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_NORM_H_
