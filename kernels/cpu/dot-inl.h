// Dot products in the order of lane_order.h, compiled once per instruction set.
//
// A weight row is a type with Load(block, even, odd): the weights of 32 columns as float32, even
// columns and odd columns. It also fetches the block that lies `prefetch` ahead into cache, since
// rows are too short, and too many at once, for the hardware to do it. A tile multiplies R rows
// with T tokens: a decoded block is used T times.

#if defined(CONCLAVE_KERNELS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_CPU_DOT_INL_H_
#undef CONCLAVE_KERNELS_CPU_DOT_INL_H_
#else
#define CONCLAVE_KERNELS_CPU_DOT_INL_H_
#endif

#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/lane_order.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kLanes>;
using FloatVec = hn::Vec<FloatTag>;
using BitsTag = hn::RebindToUnsigned<FloatTag>;
using BitsVec = hn::Vec<BitsTag>;

constexpr int kVecLanes = static_cast<int>(hn::MaxLanes(FloatTag()));
constexpr int kParts = static_cast<int>(kLanes) / kVecLanes;

// The 16 lanes, lane j in part[j / kVecLanes].
struct Lanes {
  FloatVec part[kParts];
};

HWY_INLINE Lanes ZeroLanes() {
  Lanes out;
  for (FloatVec& part : out.part) part = hn::Zero(FloatTag());
  return out;
}

// from [16]
HWY_INLINE Lanes LoadLanes(const float* HWY_RESTRICT from) {
  Lanes out;
  for (int p = 0; p < kParts; ++p) out.part[p] = hn::LoadU(FloatTag(), from + p * kVecLanes);
  return out;
}

// The tree of lane_order.h.
HWY_INLINE float SumLanes(const Lanes& lanes) {
#if HWY_TARGET == HWY_SCALAR
  float sums[kParts];
  for (int p = 0; p < kParts; ++p) sums[p] = hn::GetLane(lanes.part[p]);
  for (int width = kParts / 2; width > 0; width /= 2) {
    for (int p = 0; p < width; ++p) sums[p] += sums[p + width];
  }
  return sums[0];
#else
#if HWY_MAX_BYTES >= 64
  const hn::CappedTag<float, 8> half;
  const hn::CappedTag<float, 4> quad;
  const auto eight =
      hn::Add(hn::LowerHalf(half, lanes.part[0]), hn::UpperHalf(half, lanes.part[0]));
  const auto four = hn::Add(hn::LowerHalf(quad, eight), hn::UpperHalf(quad, eight));
#elif HWY_MAX_BYTES >= 32
  const hn::CappedTag<float, 4> quad;
  const auto eight = hn::Add(lanes.part[0], lanes.part[1]);
  const auto four = hn::Add(hn::LowerHalf(quad, eight), hn::UpperHalf(quad, eight));
#else
  const auto four =
      hn::Add(hn::Add(lanes.part[0], lanes.part[2]), hn::Add(lanes.part[1], lanes.part[3]));
#endif
  const auto two = hn::Add(four, hn::Shuffle1032(four));
  return hn::GetLane(hn::Add(two, hn::Shuffle2301(two)));
#endif  // HWY_SCALAR
}

// Two bf16 values to each 32 bits, in column order.
HWY_INLINE void SplitPairs(BitsVec pairs, FloatVec& even, FloatVec& odd) {
  even = hn::BitCast(FloatTag(), hn::ShiftLeft<16>(pairs));
  odd = hn::BitCast(FloatTag(), hn::And(pairs, hn::Set(BitsTag(), 0xFFFF0000u)));
}

struct Bf16Row {
  const uint16_t* data;
  int64_t prefetch;  // values ahead

  HWY_INLINE void Load(int64_t block, Lanes& even, Lanes& odd) const {
    const uint16_t* from = data + block * kBlockColumns;
    hwy::Prefetch(from + prefetch);
#if HWY_TARGET == HWY_SCALAR
    for (int p = 0; p < kParts; ++p) {
      even.part[p] = hn::Set(FloatTag(), Bf16ToFloat(from[2 * p]));
      odd.part[p] = hn::Set(FloatTag(), Bf16ToFloat(from[2 * p + 1]));
    }
#else
    const hn::Repartition<uint16_t, FloatTag> tag;
    for (int p = 0; p < kParts; ++p) {
      const auto values = hn::LoadU(tag, from + p * 2 * kVecLanes);
      SplitPairs(hn::BitCast(BitsTag(), values), even.part[p], odd.part[p]);
    }
#endif
  }
};

// The running sums of a tile.
template <int R, int T>
struct Sums {
  Lanes lanes[R][T];

  HWY_INLINE void Clear() {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < T; ++t) lanes[r][t] = ZeroLanes();
    }
  }
};

// sums += one block of every row times x, the packed activations of T tokens from `x_offset` on.
template <int R, int T, class Row>
HWY_INLINE void AddBlock(const Row* rows, int64_t block, const float* const* x, int64_t x_offset,
                         Sums<R, T>& sums) {
  for (int r = 0; r < R; ++r) {
    Lanes even, odd;
    rows[r].Load(block, even, odd);
    for (int t = 0; t < T; ++t) {
      const float* HWY_RESTRICT from = x[t] + x_offset;
      for (int p = 0; p < kParts; ++p) {
        const auto activation = hn::LoadU(FloatTag(), from + p * kVecLanes);
        sums.lanes[r][t].part[p] = hn::MulAdd(even.part[p], activation, sums.lanes[r][t].part[p]);
      }
      for (int p = 0; p < kParts; ++p) {
        const auto activation = hn::LoadU(FloatTag(), from + kLanes + p * kVecLanes);
        sums.lanes[r][t].part[p] = hn::MulAdd(odd.part[p], activation, sums.lanes[r][t].part[p]);
      }
    }
  }
}

// sums += blocks [begin, end). The sums are in registers meanwhile.
template <int R, int T, class Row>
HWY_INLINE void AddBlocks(const Row* rows, int64_t begin, int64_t end, const float* const* x,
                          Sums<R, T>& sums) {
  Sums<R, T> running = sums;
  for (int64_t block = begin; block < end; ++block) {
    AddBlock<R, T>(rows, block, x, block * kBlockColumns, running);
  }
  sums = running;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#endif
