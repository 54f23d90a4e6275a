#ifndef CONCLAVE_KERNELS_CPU_BF16_H_
#define CONCLAVE_KERNELS_CPU_BF16_H_

#include <bit>
#include <cstdint>

namespace conclave::kernels {

inline float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_BF16_H_
