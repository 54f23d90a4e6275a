// MXFP4 weights, decoded in registers: the nibbles of a block index the 16 products of its scale
// (mxfp4_table.h), which come out as bf16 in column order and go on as bf16 weights do. A decoded
// block serves a tile of tokens. For more tokens it is decoded again: the shuffles run beside the
// multiply-adds, which are the limit then, and that is faster than keeping decoded rows in cache.

#include "kernels/cpu/simd_targets.h"
// After the targets.
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/mxfp4_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_mxfp4.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

struct Mxfp4Row {
  const uint8_t* blocks;
  const uint8_t* scales;
  int64_t prefetch;

  HWY_INLINE void Load(int64_t block, Lanes& even, Lanes& odd) const {
    const Mxfp4Products& products = kMxfp4Table[scales[block]];
    const auto product = [&products](int nibble) {
      return hn::Set(FloatTag(), Bf16ToFloat(static_cast<uint16_t>(products.high[nibble] << 8 |
                                                                   products.low[nibble])));
    };
    for (int p = 0; p < kParts; ++p) {
      even.part[p] = product(blocks[block * 16 + p] & 15);
      odd.part[p] = product(blocks[block * 16 + p] >> 4);
    }
  }
};

#else

using BytesTag = hn::Repartition<uint8_t, FloatTag>;
using WordsTag = hn::Repartition<uint16_t, FloatTag>;

// A vector of decoded bytes becomes two vectors of bf16, the lower and upper halves of its 128-bit
// lanes interleaved; 128-bit registers need two rounds for a block, 512-bit ones use one half.
constexpr int kRounds = kVecLanes == 4 ? 2 : 1;
constexpr bool kUseUpper = kVecLanes < 16;

// Indices that bring byte i of a block to both bytes' place of its two columns: 16-bit element e
// of the lower (upper) half of lane q gets the byte of columns 8 q + 2 e (of the next vector).
struct SpreadIndices {
  uint8_t bytes[kRounds][kVecLanes * 4];
};
constexpr SpreadIndices MakeSpreadIndices() {
  SpreadIndices out{};
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kVecLanes * 4; ++i) {
      const int lane = i / 16;
      const int element = i % 16 / 2;
      const int upper = element / 4;
      const int source = 8 * round + kVecLanes * upper + 4 * lane + element % 4;
      out.bytes[round][i] = static_cast<uint8_t>(i % 2 == 1 || source >= 16 ? 0x80 : source);
    }
  }
  return out;
}
alignas(64) constexpr SpreadIndices kSpread = MakeSpreadIndices();

struct Mxfp4Row {
  const uint8_t* blocks;
  const uint8_t* scales;
  int64_t prefetch;  // bytes ahead

  HWY_INLINE void Load(int64_t block, Lanes& even, Lanes& odd) const {
    hwy::Prefetch(blocks + block * 16 + prefetch);
    const BytesTag bytes_tag;
    const WordsTag words_tag;
    const auto bytes = hn::LoadDup128(bytes_tag, blocks + block * 16);
    const Mxfp4Products& products = kMxfp4Table[scales[block]];
    const auto low_products = hn::LoadDup128(bytes_tag, products.low.data());
    const auto high_products = hn::LoadDup128(bytes_tag, products.high.data());
    for (int round = 0; round < kRounds; ++round) {
      const auto spread_indices = hn::Load(bytes_tag, kSpread.bytes[round]);
      // 16 bits 00hl become 0h0l: two indices in column order.
      const auto spread = hn::BitCast(words_tag, hn::TableLookupBytesOr0(bytes, spread_indices));
      const auto nibbles = hn::BitCast(bytes_tag, hn::And(hn::Or(spread, hn::ShiftLeft<4>(spread)),
                                                          hn::Set(words_tag, uint16_t{0x0F0F})));
      const auto low = hn::TableLookupBytes(low_products, nibbles);
      const auto high = hn::TableLookupBytes(high_products, nibbles);
      const int p = 2 * round;
      SplitPairs(hn::BitCast(BitsTag(), hn::InterleaveLower(bytes_tag, low, high)), even.part[p],
                 odd.part[p]);
      if constexpr (kUseUpper) {
        SplitPairs(hn::BitCast(BitsTag(), hn::InterleaveUpper(bytes_tag, low, high)),
                   even.part[p + 1], odd.part[p + 1]);
      }
    }
  }
};

#endif  // HWY_SCALAR

struct Mxfp4Rows {
  using Row = Mxfp4Row;

  const uint8_t* data;
  const uint8_t* scales;
  int64_t blocks;

  HWY_INLINE Row At(int64_t row) const {
    return {data + row * blocks * 16, scales + row * blocks, kRowBlock * blocks * 16};
  }
};

void RunMatmulMxfp4(const Mxfp4Matrix& matrix, int64_t begin, int64_t end,
                    std::span<const float* const> x, float* out, int64_t out_stride) {
  const Mxfp4Rows rows = {matrix.blocks, matrix.scales, matrix.cols / kBlockColumns};
  // Enough sums to hide the latency of the multiply-adds, within the registers there are.
  constexpr int kSingleTokenRows = kParts == 1 ? 4 : 2;
  AllTokens<kSingleTokenRows>(rows, begin, end - begin, x.data(), static_cast<int64_t>(x.size()),
                              out, out_stride);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels {

HWY_EXPORT(RunMatmulMxfp4);

void MatmulMxfp4(const Mxfp4Matrix& matrix, int64_t begin, int64_t end,
                 std::span<const float* const> x, float* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(RunMatmulMxfp4)(matrix, begin, end, x, out, out_stride);
}

}  // namespace conclave::kernels
#endif  // HWY_ONCE
