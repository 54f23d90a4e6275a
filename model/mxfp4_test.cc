#include "model/mxfp4.h"

#include <cmath>

#include "gtest/gtest.h"
#include "model/bfloat16.h"

namespace conclave::model {
namespace {

TEST(Mxfp4Test, LowNibbleIsTheEvenValue) {
  uint8_t block[kMxfp4BlockBytes] = {0x21, 0xF7};
  float values[kMxfp4BlockValues];
  DecodeMxfp4Block(block, 127, values);
  EXPECT_EQ(values[0], 0.5f);
  EXPECT_EQ(values[1], 1.0f);
  EXPECT_EQ(values[2], 6.0f);
  EXPECT_EQ(values[3], -6.0f);
  EXPECT_EQ(values[4], 0.0f);
}

TEST(Mxfp4Test, ScaleIsAPowerOfTwo) {
  for (int scale = 0; scale <= 254; ++scale) {
    EXPECT_EQ(Mxfp4Scale(static_cast<uint8_t>(scale)), std::ldexp(1.0f, scale - 127)) << scale;
  }
}

TEST(Mxfp4Test, EveryValueUpToTheLargestScaleIsExactInBf16) {
  for (int scale = 2; scale <= kMaxMxfp4Scale; ++scale) {
    for (int nibble = 0; nibble < 16; ++nibble) {
      const auto byte = static_cast<uint8_t>(nibble | nibble << 4);
      const float value = Mxfp4Value(&byte, static_cast<uint8_t>(scale), nibble % 2);
      EXPECT_EQ(value, std::ldexp(kE2m1Values[static_cast<size_t>(nibble)], scale - 127));
      EXPECT_EQ(Bf16ToFloat(FloatToBf16(value)), value) << scale << " " << nibble;
    }
  }
}

TEST(Bfloat16Test, RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3F80);
  EXPECT_EQ(FloatToBf16(1.0f + 1.0f / 256), 0x3F80);  // half way: to even
  EXPECT_EQ(FloatToBf16(1.0f + 3.0f / 256), 0x3F82);
  EXPECT_EQ(FloatToBf16(1.0f + 1.001f / 256), 0x3F81);
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
  EXPECT_EQ(FloatToBf16(INFINITY), 0x7F80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(NAN))));
}

TEST(Bfloat16Test, EveryValueSurvivesTheWayThroughFloat) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(FloatToBf16(value), bits);
  }
}

}  // namespace
}  // namespace conclave::model
