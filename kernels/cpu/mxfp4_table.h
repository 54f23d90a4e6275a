#ifndef CONCLAVE_KERNELS_CPU_MXFP4_TABLE_H_
#define CONCLAVE_KERNELS_CPU_MXFP4_TABLE_H_

// Scale times nibble for every scale byte and nibble, as bf16, which holds each product exactly:
// decoding is a lookup, and no multiplication is left.

#include <array>
#include <cstdint>

namespace conclave::kernels {

// The 16 products of one scale, lower and upper bytes apart, as a byte shuffle wants them.
struct Mxfp4Products {
  std::array<uint8_t, 16> low;
  std::array<uint8_t, 16> high;
};

// bf16 bits of E2M1(nibble) * 2^(scale - 127); scale <= model::kMaxMxfp4Scale.
constexpr uint16_t Mxfp4Bits(int nibble, int scale) {
  // 0, 0.5, 1, 1.5, 2, 3, 4, 6 as 1.m * 2^e.
  constexpr int kExponent[8] = {0, -1, 0, 0, 1, 1, 2, 2};
  constexpr int kHalf[8] = {0, 0, 0, 1, 0, 1, 0, 1};
  const int magnitude = nibble & 7;
  const int sign = nibble >> 3 << 15;
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  const int exponent = scale + kExponent[magnitude];
  const int mantissa = kHalf[magnitude] << 6;
  if (exponent > 0) return static_cast<uint16_t>(sign | exponent << 7 | mantissa);
  return static_cast<uint16_t>(sign | (128 | mantissa) >> (1 - exponent));  // subnormal, exact
}

constexpr std::array<Mxfp4Products, 256> MakeMxfp4Table() {
  std::array<Mxfp4Products, 256> table{};
  for (int scale = 0; scale < 253; ++scale) {
    for (int nibble = 0; nibble < 16; ++nibble) {
      const uint16_t bits = Mxfp4Bits(nibble, scale);
      table[scale].low[nibble] = static_cast<uint8_t>(bits & 0xFF);
      table[scale].high[nibble] = static_cast<uint8_t>(bits >> 8);
    }
  }
  return table;
}

// Scales that loading refuses have zeros.
alignas(64) inline constexpr std::array<Mxfp4Products, 256> kMxfp4Table = MakeMxfp4Table();

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_MXFP4_TABLE_H_
