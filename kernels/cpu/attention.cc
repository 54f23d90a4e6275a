// Attention of one token over a paged cache in two passes: all logits of a head group, softmax,
// then the values. Each key and value is read once for the whole group.

#include "kernels/cpu/simd_targets.h"
// After the targets.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE float Dot(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int size) {
  Lanes sums = ZeroLanes();
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Lanes left = LoadLanes(a + i);
    const Lanes right = LoadLanes(b + i);
    for (int p = 0; p < kParts; ++p) {
      sums.part[p] = hn::MulAdd(left.part[p], right.part[p], sums.part[p]);
    }
  }
  float rest = 0;
  for (; i < size; ++i) rest += a[i] * b[i];
  return SumLanes(sums) + rest;
}

// logits [n] of one head for n keys that lie row after row.
HWY_INLINE void KeyLogits(const float* query, const float* keys, int n, int head_dim, float scale,
                          float* logits) {
  for (int j = 0; j < n; ++j) logits[j] = Dot(query, keys + j * head_dim, head_dim) * scale;
}

// out += sum of weights[j] * values[j], key by key.
HWY_INLINE void AddValues(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT values,
                          int n, int head_dim, float* HWY_RESTRICT out) {
  int i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    Lanes sum = LoadLanes(out + i);
    for (int j = 0; j < n; ++j) {
      const auto weight = hn::Set(FloatTag(), weights[j]);
      const float* value = values + static_cast<int64_t>(j) * head_dim + i;
      for (int p = 0; p < kParts; ++p) {
        sum.part[p] = hn::MulAdd(weight, hn::LoadU(FloatTag(), value + p * kVecLanes), sum.part[p]);
      }
    }
    for (int p = 0; p < kParts; ++p) {
      hn::StoreU(sum.part[p], FloatTag(), out + i + p * kVecLanes);
    }
  }
  for (; i < head_dim; ++i) {
    for (int j = 0; j < n; ++j)
      out[i] += weights[j] * values[static_cast<int64_t>(j) * head_dim + i];
  }
}

// logits [padded], a multiple of kLanes, the filling at minus infinity. Replaces them by
// exp(z - m), m = max(logits, sink), and returns their sum plus exp(sink - m).
HWY_INLINE float Exponentials(float* logits, int64_t padded, float sink) {
  const FloatTag tag;
  float maximum = sink;
  for (int64_t i = 0; i < padded; ++i) maximum = std::max(maximum, logits[i]);
  const auto shift = hn::Set(tag, maximum);
  Lanes sums = ZeroLanes();
  for (int64_t i = 0; i < padded; i += kLanes) {
    for (int p = 0; p < kParts; ++p) {
      float* at = logits + i + p * kVecLanes;
      const auto value = hn::CallExp(tag, hn::Sub(hn::LoadU(tag, at), shift));
      hn::StoreU(value, tag, at);
      sums.part[p] = hn::Add(sums.part[p], value);
    }
  }
  return SumLanes(sums) + std::exp(sink - maximum);
}

// Calls visit(keys before this stretch, first row of the stretch in the cache, rows) for stretches
// of positions [begin, end) that lie in one block.
template <class Visit>
HWY_INLINE void ForEachBlock(const PagedHead& cache, int begin, int end, const Visit& visit) {
  for (int position = begin; position < end;) {
    const int block = position / cache.block_tokens;
    const int rows = std::min(end, (block + 1) * cache.block_tokens) - position;
    const int64_t offset = cache.blocks[block - cache.first_block] * cache.block_stride +
                           int64_t{position % cache.block_tokens} * cache.head_dim;
    visit(position - begin, offset, rows);
    position += rows;
  }
}

void RunAttendHeads(const PagedHead& cache, int begin, int end, int heads, const float* queries,
                    const uint16_t* sinks, std::vector<float>& scratch, float* out) {
  const int head_dim = cache.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int64_t padded = (end - begin + kLanes - 1) / kLanes * kLanes;
  scratch.resize(std::max<size_t>(scratch.size(), heads * padded));
  float* logits = scratch.data();  // [heads, padded]
  ForEachBlock(cache, begin, end, [&](int first, int64_t offset, int rows) HWY_ATTR {
    for (int h = 0; h < heads; ++h) {
      KeyLogits(queries + h * head_dim, cache.keys + offset, rows, head_dim, scale,
                logits + h * padded + first);
    }
  });
  for (int h = 0; h < heads; ++h) {
    float* row = logits + h * padded;
    std::fill(row + (end - begin), row + padded, -HUGE_VALF);
    const float sum = Exponentials(row, padded, Bf16ToFloat(sinks[h]));
    for (int64_t i = 0; i < padded; ++i) row[i] /= sum;
  }
  std::fill(out, out + int64_t{heads} * head_dim, 0.0f);
  ForEachBlock(cache, begin, end, [&](int first, int64_t offset, int rows) HWY_ATTR {
    for (int h = 0; h < heads; ++h) {
      AddValues(logits + h * padded + first, cache.values + offset, rows, head_dim,
                out + int64_t{h} * head_dim);
    }
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels {

HWY_EXPORT(RunAttendHeads);

void AttendHeads(const PagedHead& cache, int begin, int end, int heads, const float* queries,
                 const uint16_t* sinks, std::vector<float>& scratch, float* out) {
  HWY_DYNAMIC_DISPATCH(RunAttendHeads)
  (cache, begin, end, heads, queries, sinks, scratch, out);
}

}  // namespace conclave::kernels
#endif  // HWY_ONCE
