#include "kernels/cpu/matmul.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kernels/cpu/lane_order.h"
#include "kernels/cpu/mxfp4_table.h"
#include "kernels/reference/random_data.h"
#include "kernels/reference/reference.h"
#include "model/mxfp4.h"

namespace conclave::kernels {
namespace {

using reference::RandomData;
using reference::Vector;

// Packed random tokens, each of `segments` separately packed parts.
struct Tokens {
  Tokens(RandomData& random, int count, int64_t columns, int segments = 1)
      : cols(columns), plain(random.Floats(count * columns, 1)) {
    const int64_t part = columns / segments;
    const int64_t size = segments * PackedSize(part);
    packed.resize(count * size);
    for (int t = 0; t < count; ++t) {
      for (int s = 0; s < segments; ++s) {
        PackRow(plain.data() + t * columns + s * part, part,
                packed.data() + t * size + s * PackedSize(part));
      }
      x.push_back(packed.data() + t * size);
    }
  }
  Vector Token(int t) const { return reference::ToVector(plain.data() + t * cols, cols); }

  int64_t cols;
  std::vector<float> plain, packed;
  std::vector<const float*> x;
};

struct Mxfp4Data {
  Mxfp4Data(RandomData& random, int64_t rows, int64_t columns)
      : cols(columns),
        blocks(random.Bytes(rows * columns / 2, 0, 256)),
        scales(random.Bytes(rows * columns / 32, 112, 12)) {}
  Mxfp4Matrix matrix() const { return {blocks.data(), scales.data(), cols}; }
  double Value(int64_t row, int64_t col) const {
    return reference::Mxfp4Value(blocks.data() + row * cols / 2, scales.data() + row * cols / 32,
                                 col);
  }
  std::vector<uint16_t> AsBf16(int64_t rows) const {
    std::vector<uint16_t> out(rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i) out[i] = reference::ToBf16(Value(i / cols, i % cols));
    return out;
  }

  int64_t cols;
  std::vector<uint8_t> blocks, scales;
};

// Runs a body once for every instruction set that was compiled and that this machine has.
template <class Body>
void ForEachTarget(const Body& body) {
  const int64_t supported = hwy::SupportedTargets();
  int tried = 0;
  for (const int64_t target : {HWY_SCALAR, HWY_SSE4, HWY_AVX2, HWY_AVX3, HWY_NEON}) {
    if ((supported & target) == 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    SCOPED_TRACE(hwy::TargetName(target));
    body(target);
    ++tried;
  }
  hwy::SetSupportedTargetsForTest(0);
  EXPECT_GT(tried, 0);
}

TEST(MatmulTest, Mxfp4AgreesWithFloat64OnEveryInstructionSet) {
  RandomData random(1);
  constexpr int64_t kRows = 21;
  constexpr int kTokens = 9;
  const Mxfp4Data weights(random, kRows, 2880);
  const Tokens tokens(random, kTokens, 2880);
  ForEachTarget([&](int64_t) {
    std::vector<float> out(kTokens * kRows);
    MatmulMxfp4(weights.matrix(), 0, kRows, tokens.x, out.data(), kRows);
    for (int t = 0; t < kTokens; ++t) {
      const Vector expected = reference::Linear(
          kRows, [&](int64_t row, int64_t col) { return weights.Value(row, col); }, {},
          tokens.Token(t));
      EXPECT_LT(reference::RelativeError(out.data() + t * kRows, expected),
                reference::kFloat32Error);
    }
  });
}

TEST(MatmulTest, Bf16AgreesWithFloat64OnEveryInstructionSetAndForAnyColumns) {
  RandomData random(2);
  constexpr int64_t kRows = 19;
  constexpr int kTokens = 7;
  for (const int64_t cols : {1, 31, 32, 33, 90, 2880}) {
    const int64_t stride = cols + 5;  // a column slice of a wider matrix
    const std::vector<uint16_t> weights = random.Bf16(kRows * stride, 0.02);
    const Tokens tokens(random, kTokens, cols);
    ForEachTarget([&](int64_t) {
      std::vector<float> out(kTokens * kRows);
      MatmulBf16({weights.data(), cols, stride}, 0, kRows, tokens.x, out.data(), kRows);
      for (int t = 0; t < kTokens; ++t) {
        const Vector expected = reference::Linear(
            kRows,
            [&](int64_t row, int64_t col) {
              return reference::FromBf16(weights[row * stride + col]);
            },
            {}, tokens.Token(t));
        EXPECT_LT(reference::RelativeError(out.data() + t * kRows, expected),
                  reference::kFloat32Error);
      }
    });
  }
}

// Products of a matrix with 64 tokens, one token and one row at a time.
template <class Multiply>
std::vector<float> OneByOne(const Tokens& tokens, int64_t rows, const Multiply& multiply) {
  std::vector<float> out(tokens.x.size() * rows);
  for (size_t t = 0; t < tokens.x.size(); ++t) {
    for (int64_t row = 0; row < rows; ++row) {
      multiply(row, row + 1, std::span(tokens.x).subspan(t, 1), out.data() + t * rows + row);
    }
  }
  return out;
}

// Every batch and every split of the rows gives the bits of one token times one row.
template <class Multiply>
void ExpectSameBits(const Tokens& tokens, int64_t rows, const Multiply& multiply) {
  const std::vector<float> expected = OneByOne(tokens, rows, multiply);
  for (const size_t batch : {1, 2, 3, 4, 5, 6, 7, 64}) {
    for (const int64_t split : {int64_t{0}, int64_t{1}, int64_t{8}, int64_t{13}, rows}) {
      std::vector<float> out(tokens.x.size() * rows);
      for (size_t t = 0; t < tokens.x.size(); t += batch) {
        const auto x = std::span(tokens.x).subspan(t, std::min(batch, tokens.x.size() - t));
        multiply(0, split, x, out.data() + t * rows);
        multiply(split, rows, x, out.data() + t * rows + split);
      }
      ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
          << "batch " << batch << ", split " << split;
    }
  }
}

TEST(MatmulTest, ARowsBitsDependOnNeitherBatchNorSplit) {
  RandomData random(3);
  constexpr int64_t kRows = 43;
  const Tokens tokens(random, 64, 2880);
  const Mxfp4Data mxfp4(random, kRows, 2880);
  const Tokens odd_tokens(random, 64, 205);
  const std::vector<uint16_t> bf16 = random.Bf16(kRows * 205, 0.02);
  ForEachTarget([&](int64_t) {
    ExpectSameBits(tokens, kRows, [&](int64_t begin, int64_t end, auto x, float* out) {
      MatmulMxfp4(mxfp4.matrix(), begin, end, x, out, kRows);
    });
    ExpectSameBits(odd_tokens, kRows, [&](int64_t begin, int64_t end, auto x, float* out) {
      MatmulBf16({bf16.data(), 205, 205}, begin, end, x, out, kRows);
    });
  });
}

TEST(MatmulTest, Mxfp4AndItsBf16ExpansionGiveTheSameBits) {
  RandomData random(4);
  constexpr int64_t kRows = 24;
  constexpr int kTokens = 5;
  const Mxfp4Data mxfp4(random, kRows, 416);
  const std::vector<uint16_t> bf16 = mxfp4.AsBf16(kRows);
  const Tokens tokens(random, kTokens, 416);
  ForEachTarget([&](int64_t) {
    std::vector<float> from_mxfp4(kTokens * kRows), from_bf16(kTokens * kRows);
    MatmulMxfp4(mxfp4.matrix(), 0, kRows, tokens.x, from_mxfp4.data(), kRows);
    MatmulBf16({bf16.data(), 416, 416}, 0, kRows, tokens.x, from_bf16.data(), kRows);
    EXPECT_EQ(from_mxfp4, from_bf16);
  });
}

// Ranks of one cluster may run on different machines.
TEST(MatmulTest, InstructionSetsWithFusedMultiplyAddGiveTheSameBits) {
  RandomData random(5);
  const Mxfp4Data weights(random, 16, 2880);
  const Tokens tokens(random, 3, 2880);
  std::vector<std::vector<float>> results;
  ForEachTarget([&](int64_t target) {
    if ((target & (HWY_AVX2 | HWY_AVX3)) == 0) return;
    results.emplace_back(3 * 16);
    MatmulMxfp4(weights.matrix(), 0, 16, tokens.x, results.back().data(), 16);
  });
  for (const std::vector<float>& result : results) EXPECT_EQ(result, results.front());
}

TEST(MatmulTest, SegmentsAddInFloat64WhateverTheSplitOverRanks) {
  RandomData random(6);
  constexpr int64_t kRows = 11;
  for (const int64_t group : {512, 40}) {
    constexpr int kGroups = 8;
    const int64_t cols = kGroups * group;
    const std::vector<uint16_t> weights = random.Bf16(kRows * cols, 0.02);
    const Tokens tokens(random, 6, cols, kGroups);
    std::vector<double> whole(6 * kRows);
    MatmulBf16Segments({weights.data(), cols, cols}, kGroups, 0, kRows, tokens.x, whole.data(),
                       kRows);
    // Eight ranks of one group each: the float64 sum of their float32 sums, in order.
    std::vector<double> sum(6 * kRows);
    for (int g = 0; g < kGroups; ++g) {
      std::vector<const float*> x;
      for (const float* token : tokens.x) x.push_back(token + g * PackedSize(group));
      std::vector<float> part(6 * kRows);
      MatmulBf16({weights.data() + g * group, group, cols}, 0, kRows, x, part.data(), kRows);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    EXPECT_EQ(whole, sum);
    const Vector expected = reference::Linear(
        kRows,
        [&](int64_t row, int64_t col) { return reference::FromBf16(weights[row * cols + col]); },
        {}, tokens.Token(0));
    EXPECT_LT(reference::RelativeError(whole.data(), expected), reference::kFloat32Error);
  }
}

TEST(Mxfp4TableTest, HoldsEveryProductExactly) {
  for (int scale = 0; scale <= model::kMaxMxfp4Scale; ++scale) {
    for (int nibble = 0; nibble < 16; ++nibble) {
      const auto block = static_cast<uint8_t>(nibble);
      const auto scale_byte = static_cast<uint8_t>(scale);
      const double expected = reference::Mxfp4Value(&block, &scale_byte, 0);
      ASSERT_EQ(reference::FromBf16(Mxfp4Bits(nibble, scale)), expected);
      ASSERT_EQ(kMxfp4Table[scale].low[nibble] | kMxfp4Table[scale].high[nibble] << 8,
                Mxfp4Bits(nibble, scale));
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
