#include "tests/gpu/agreement.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/check.h"
#include "model/bfloat16.h"

namespace conclave::gpu {
namespace {

std::vector<double> RouterLogits(std::span<const float> normed,
                                 const kernels::RouterWeights& router) {
  const auto* weight = static_cast<const uint16_t*>(router.weight.data);
  const auto* bias = static_cast<const uint16_t*>(router.bias.data);
  std::vector<double> logits(router.weight.rows);
  for (size_t expert = 0; expert < logits.size(); ++expert) {
    const uint16_t* row = weight + expert * router.weight.row_stride;
    logits[expert] = bias == nullptr ? 0 : model::Bf16ToFloat(bias[expert]);
    for (size_t i = 0; i < normed.size(); ++i)
      logits[expert] += normed[i] * model::Bf16ToFloat(row[i]);
  }
  return logits;
}

}  // namespace

Agreement Compare(std::span<const float> got, std::span<const float> want, int64_t cols) {
  CONCLAVE_CHECK(got.size() == want.size() && !want.empty());
  Agreement out;
  double error = 0, square = 0, sum = 0;
  for (size_t begin = 0; begin < want.size(); begin += cols) {
    double dot = 0, got_square = 0, want_square = 0;
    for (size_t i = begin; i < begin + cols; ++i) {
      const double g = got[i], w = want[i];
      // A NaN must not vanish in max().
      if (!(std::abs(g - w) <= out.worst)) out.worst = std::abs(g - w);
      error += (g - w) * (g - w);
      sum += w;
      dot += g * w;
      got_square += g * g;
      want_square += w * w;
    }
    square += want_square;
    const double cosine = dot / std::sqrt(got_square * want_square);
    if (!(cosine >= out.min_cosine)) out.min_cosine = cosine;
  }
  const double count = static_cast<double>(want.size());
  out.relative_rms = std::sqrt(error / square);
  out.worst /= std::sqrt(square / count - (sum / count) * (sum / count));
  return out;
}

std::vector<std::vector<double>> RouterGaps(const worker::Transformer::Trace& trace,
                                            const worker::RankWeights& weights, int k) {
  std::vector<std::vector<double>> gaps;
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const kernels::RouterWeights& router = weights.layers[layer].router;
    const std::span<const float> normed(trace.normed[layer]);
    std::vector<double>& out = gaps.emplace_back();
    for (size_t begin = 0; begin < normed.size(); begin += router.weight.cols) {
      std::vector<double> logits = RouterLogits(normed.subspan(begin, router.weight.cols), router);
      std::sort(logits.begin(), logits.end(), std::greater<>());
      out.push_back(logits[k - 1] - logits[k]);
    }
  }
  return gaps;
}

bool SameExperts(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::is_permutation(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace conclave::gpu
