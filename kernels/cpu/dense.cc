#include "kernels/cpu/dense.h"

#include <algorithm>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/parallel.h"

namespace conclave::kernels {
namespace {

Bf16Matrix AsMatrix(const DenseWeight& weight) {
  return {static_cast<const uint16_t*>(weight.data), weight.cols, weight.row_stride};
}

template <typename T>
void AddBias(const VectorWeight* bias, int64_t begin, int64_t end, int64_t tokens, T* out,
             int64_t out_stride) {
  if (bias == nullptr || bias->data == nullptr) return;
  const auto* values = static_cast<const uint16_t*>(bias->data) + begin;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < end - begin; ++i) out[t * out_stride + i] += Bf16ToFloat(values[i]);
  }
}

}  // namespace

void PackedTokens::Fill(int64_t tokens, int64_t size, base::ThreadPool& pool,
                        const std::function<void(int64_t token, float* packed)>& fill) {
  memory_.resize(std::max<size_t>(memory_.size(), tokens * size));
  rows_.resize(tokens);
  for (int64_t t = 0; t < tokens; ++t) rows_[t] = memory_.data() + t * size;
  pool.ParallelFor(tokens, GrainOf(size), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) fill(t, memory_.data() + t * size);
  });
}

void MultiplyDense(std::span<const DensePart> parts, std::span<const float* const> x,
                   base::ThreadPool& pool, float* out, int64_t out_stride) {
  const auto tokens = static_cast<int64_t>(x.size());
  if (tokens == 0) return;
  int64_t total = 0;
  for (const DensePart& part : parts) total += part.weight->rows;
  const int64_t grain = GrainOf(parts.front().weight->cols * tokens);
  pool.ParallelFor(total, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // row of `out` where the part starts
    for (const DensePart& part : parts) {
      const int64_t from = std::max(begin - first, int64_t{0});
      const int64_t to = std::min(end - first, part.weight->rows);
      if (from < to) {
        float* target = out + first + from;
        MatmulBf16(AsMatrix(*part.weight), from, to, x, target, out_stride);
        AddBias(part.bias, from, to, tokens, target, out_stride);
      }
      first += part.weight->rows;
    }
  });
}

void MultiplySegments(const DenseWeight& weight, const VectorWeight& bias, int segments,
                      std::span<const float* const> x, base::ThreadPool& pool, double* out,
                      int64_t out_stride) {
  const auto tokens = static_cast<int64_t>(x.size());
  pool.ParallelFor(weight.rows, GrainOf(weight.cols * tokens), [&](int64_t begin, int64_t end) {
    MatmulBf16Segments(AsMatrix(weight), segments, begin, end, x, out + begin, out_stride);
    AddBias(&bias, begin, end, tokens, out + begin, out_stride);
  });
}

}  // namespace conclave::kernels
