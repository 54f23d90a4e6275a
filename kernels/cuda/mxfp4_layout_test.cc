// The packing, decoded step by step on the host as the kernels do it.

#include "kernels/cuda/mxfp4_layout.h"

#include <bit>
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "model/mxfp4.h"

namespace conclave::kernels::cuda {
namespace {

uint32_t Shared(const WordPair& words) {
  return (words.first & kOwnBits) | (std::rotl(words.second, kSharedShift) & ~kOwnBits);
}

// E2M1 at the place where `decoded` has it.
double Value(uint32_t decoded, int half) {
  const double value = reference::FromBf16(static_cast<uint16_t>(decoded >> (half * 16)));
  return std::ldexp(value, 126);
}

TEST(Mxfp4LayoutTest, EveryCodeInEveryPlaceDecodesToItself) {
  const uint8_t scales[1] = {127};
  for (int place = 0; place < 8; ++place) {
    for (int value = 0; value < 256; ++value) {
      for (const uint8_t others : {0x00, 0xFF, 0xA5}) {
        uint8_t pairs[2][4];
        for (auto& row : pairs) std::fill(row, row + 4, others);
        pairs[place / 4][place % 4] = static_cast<uint8_t>(value);
        const WordPair words = PackWords(pairs[0], pairs[1]);
        for (int at = 0; at < 8; ++at) {
          const bool second = at >= 4;
          const uint32_t word = second ? words.second : words.first;
          const uint32_t decoded[4] = {
              RotateRight(word, kRotation0), RotateRight(word, kRotation1),
              RotateRight(word, kRotation2),
              RotateRight(Shared(words), second ? kSecondSharedRotation : kFirstSharedRotation)};
          const uint8_t pair = pairs[at / 4][at % 4];
          for (int half = 0; half < 2; ++half) {
            ASSERT_EQ(Value(decoded[at % 4] & kCodeMask, half),
                      reference::Mxfp4Value(&pair, scales, half))
                << place << " " << value << " " << at;
          }
        }
      }
    }
  }
}

TEST(Mxfp4LayoutTest, ScalesAreExactWithinARowsRange) {
  for (int largest = 0; largest <= model::kMaxMxfp4Scale; ++largest) {
    const int shift = RowShift(largest);
    const uint32_t trailer = PackTrailer(0x1234, shift);
    EXPECT_EQ(trailer & 0xFFFF, 0x1234u);
    const double factor = reference::FromBf16(static_cast<uint16_t>(trailer >> 16));
    for (int scale = std::max(0, largest - 250); scale <= largest; ++scale) {
      const int field = PackScale(scale, shift);
      ASSERT_LE(field, 254);
      const double decoded =
          std::ldexp(reference::FromBf16(static_cast<uint16_t>(field << 7)), -126) * factor;
      if (field > 0) {
        ASSERT_EQ(decoded, std::ldexp(1.0, scale - 127)) << scale << " of " << largest;
      } else {
        ASSERT_EQ(decoded, 0) << scale << " of " << largest;
        ASSERT_LE(scale, largest - 254 + 126);
      }
    }
  }
}

TEST(Mxfp4LayoutTest, TilesHoldEveryRowOnce) {
  for (const bool gate_up : {false, true}) {
    std::vector<int> seen(96);
    for (int tile = 0; tile < 6; ++tile) {
      for (int row = 0; row < kTileRows; ++row) ++seen[SourceRow(tile, row, gate_up)];
    }
    for (const int count : seen) EXPECT_EQ(count, 1);
  }
  // Gate and up of an output are 8 rows apart: one lane's.
  for (int row = 0; row < 8; ++row) {
    EXPECT_EQ(SourceRow(3, row, true) % 2, 0);
    EXPECT_EQ(SourceRow(3, row + 8, true), SourceRow(3, row, true) + 1);
  }
}

TEST(Mxfp4LayoutTest, ReleasedShapesPackWithoutPadding) {
  EXPECT_EQ(MatrixBytes(5760, 2880), 5760 * 2880 / 2 + 5760 * 90 + 5760 * 4);
  EXPECT_EQ(MatrixBytes(2880, 2880), 2880 * 2880 / 2 + 2880 * 90 + 2880 * 4);
}

}  // namespace
}  // namespace conclave::kernels::cuda
