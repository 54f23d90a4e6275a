#include "kernels/philox.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::kernels {
namespace {

using ::testing::ElementsAre;

// kat_vectors of Random123, philox4x32 10.
TEST(PhiloxTest, GivesTheKnownAnswers) {
  EXPECT_THAT(Philox({{0, 0, 0, 0}}, 0, 0).words,
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(Philox({{kOnes, kOnes, kOnes, kOnes}}, kOnes, kOnes).words,
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0).words,
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, DrawsAreUniformAndDifferByPositionAndSeed) {
  std::set<double> seen;
  double sum = 0;
  constexpr int kSeeds = 100;
  constexpr int kPositions = 100;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    for (uint64_t position = 0; position < kPositions; ++position) {
      const double u = UniformAt(seed << 32, position);  // the upper half of the seed counts too
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      seen.insert(u);
      sum += u;
    }
  }
  constexpr int kDraws = kSeeds * kPositions;
  EXPECT_EQ(seen.size(), kDraws);
  EXPECT_NEAR(sum / kDraws, 0.5, 4 * 0.2887 / 100);  // four standard errors
}

}  // namespace
}  // namespace conclave::kernels
