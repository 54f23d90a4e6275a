#ifndef CONCLAVE_MODEL_MXFP4_H_
#define CONCLAVE_MODEL_MXFP4_H_

// MXFP4 as gpt-oss stores it: blocks of 32 values along a row, 16 bytes of E2M1 nibbles and one
// E8M0 scale byte. Byte b holds value 2b in its low nibble and value 2b + 1 in its high one.

#include <array>
#include <bit>
#include <cstdint>

namespace conclave::model {

inline constexpr int kMxfp4BlockValues = 32;
inline constexpr int kMxfp4BlockBytes = kMxfp4BlockValues / 2;

// By nibble: bit 3 is the sign.
inline constexpr std::array<float, 16> kE2m1Values = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                      4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                      -2.0f, -3.0f, -4.0f, -6.0f};

// Above it a product with an E2M1 value can leave the range of bfloat16 and float32.
inline constexpr uint8_t kMaxMxfp4Scale = 252;

// 2^(scale - 127), which every scale up to 254 has in float32 (0 as a subnormal).
constexpr float Mxfp4Scale(uint8_t scale) {
  return std::bit_cast<float>(scale == 0 ? uint32_t{1} << 22 : uint32_t{scale} << 23);
}

// Value `index` (0..31) of a block: exact for scales up to kMaxMxfp4Scale.
constexpr float Mxfp4Value(const uint8_t* block, uint8_t scale, int index) {
  const uint8_t byte = block[index / 2];
  return kE2m1Values[index % 2 == 0 ? byte & 0xF : byte >> 4] * Mxfp4Scale(scale);
}

constexpr void DecodeMxfp4Block(const uint8_t* block, uint8_t scale, float* out) {
  for (int i = 0; i < kMxfp4BlockValues; ++i) out[i] = Mxfp4Value(block, scale, i);
}

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_MXFP4_H_
