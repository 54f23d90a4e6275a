#ifndef CONCLAVE_MODEL_BFLOAT16_H_
#define CONCLAVE_MODEL_BFLOAT16_H_

// bfloat16 as the upper half of a float32.

#include <bit>
#include <cstdint>

namespace conclave::model {

constexpr float Bf16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// To nearest, ties to even; a NaN stays one.
constexpr uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_BFLOAT16_H_
