// bf16 weights. One token: the weights are read once and everything else hides behind that. More
// tokens: a block, once split into float32, serves a tile of them.

#include "kernels/cpu/simd_targets.h"
// After the targets.
#include "kernels/cpu/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_bf16.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::kernels {
namespace HWY_NAMESPACE {

Bf16Rows AsRows(const Bf16Matrix& matrix, int64_t first_col, int64_t cols) {
  return {matrix.data + first_col, matrix.row_stride, cols / kBlockColumns, cols % kBlockColumns};
}

void RunMatmulBf16(const Bf16Matrix& matrix, int64_t begin, int64_t end,
                   std::span<const float* const> x, float* out, int64_t out_stride) {
  AllTokens<4>(AsRows(matrix, 0, matrix.cols), begin, end - begin, x.data(),
               static_cast<int64_t>(x.size()), out, out_stride);
}

// One row, T tokens, all segments: the segments of a row lie side by side in memory.
template <int T>
void SegmentRow(const Bf16Matrix& matrix, int segments, int64_t row, const float* const* x,
                double (&sums)[T]) {
  const int64_t cols = matrix.cols / segments;
  for (double& sum : sums) sum = 0;
  for (int segment = 0; segment < segments; ++segment) {
    const float* parts[T];
    for (int t = 0; t < T; ++t) parts[t] = x[t] + segment * PackedSize(cols);
    const Bf16Rows rows = AsRows(matrix, segment * cols, cols);
    Sums<1, T> dots;
    dots.Clear();
    AddRows<1, T>(rows, row, 0, rows.blocks, parts, dots);
    AddTails<1, T>(rows, row, parts, dots);
    for (int t = 0; t < T; ++t) sums[t] += double{SumLanes(dots.lanes[0][t])};
  }
}

template <int T>
void SegmentRows(const Bf16Matrix& matrix, int segments, int64_t begin, int64_t end,
                 const float* const* x, double* out, int64_t out_stride) {
  for (int64_t row = begin; row < end; ++row) {
    double sums[T];
    SegmentRow<T>(matrix, segments, row, x, sums);
    for (int t = 0; t < T; ++t) out[t * out_stride + row - begin] = sums[t];
  }
}

void RunMatmulBf16Segments(const Bf16Matrix& matrix, int segments, int64_t begin, int64_t end,
                           std::span<const float* const> x, double* out, int64_t out_stride) {
  const auto tokens = static_cast<int64_t>(x.size());
  for (int64_t row = begin; row < end; row += kRowBlock) {
    const int64_t row_end = std::min(row + kRowBlock, end);
    for (int64_t t = 0; t < tokens; t += kTileTokens) {
      double* to = out + t * out_stride + row - begin;
      switch (std::min<int64_t>(tokens - t, kTileTokens)) {
        case 4:
          SegmentRows<4>(matrix, segments, row, row_end, x.data() + t, to, out_stride);
          break;
        case 3:
          SegmentRows<3>(matrix, segments, row, row_end, x.data() + t, to, out_stride);
          break;
        case 2:
          SegmentRows<2>(matrix, segments, row, row_end, x.data() + t, to, out_stride);
          break;
        default:
          SegmentRows<1>(matrix, segments, row, row_end, x.data() + t, to, out_stride);
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace conclave::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave::kernels {

HWY_EXPORT(RunMatmulBf16);
HWY_EXPORT(RunMatmulBf16Segments);

void MatmulBf16(const Bf16Matrix& matrix, int64_t begin, int64_t end,
                std::span<const float* const> x, float* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(RunMatmulBf16)(matrix, begin, end, x, out, out_stride);
}

void MatmulBf16Segments(const Bf16Matrix& matrix, int segments, int64_t begin, int64_t end,
                        std::span<const float* const> x, double* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(RunMatmulBf16Segments)(matrix, segments, begin, end, x, out, out_stride);
}

}  // namespace conclave::kernels
#endif  // HWY_ONCE
