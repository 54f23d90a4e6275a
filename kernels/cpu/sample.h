#ifndef CONCLAVE_KERNELS_CPU_SAMPLE_H_
#define CONCLAVE_KERNELS_CPU_SAMPLE_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace conclave::kernels {

// Draws from softmax(logits / temperature), restricted in this order: the top_k largest, of those
// the fewest whose probabilities reach top_p, of those the ones with at least min_p of the largest
// probability. The draw is UniformAt(seed, position) into the kept ids in rising order. Ties of
// equal logits go to the lower id; logits that are not numbers count as minus infinity.
int32_t SampleToken(std::span<const float> logits, const SampleParams& params);

// log-softmax of raw logits, in float64.
class LogProbs {
 public:
  explicit LogProbs(std::span<const float> logits);
  float of(int32_t token) const;
  // The `count` largest, by falling value, ties by rising id; fewer when there are fewer logits.
  std::vector<std::pair<int32_t, float>> Top(int count) const;

 private:
  std::span<const float> logits_;
  double log_sum_;
};

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_SAMPLE_H_
