#ifndef CONCLAVE_KERNELS_CPU_SAMPLE_H_
#define CONCLAVE_KERNELS_CPU_SAMPLE_H_

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "kernels/penalties.h"

namespace conclave::kernels {

// What SetSlotSampling gave a slot, and the counts since.
class SlotTokens {
 public:
  SlotTokens() = default;
  explicit SlotTokens(const SlotSampling& sampling);

  void CountGenerated(int32_t token);

  // Changes a row's logits as SampleParams says: biases, penalties, end tokens.
  void Adjust(const SampleParams& params, std::span<float> logits) const;

 private:
  std::vector<std::pair<int32_t, float>> biases_;
  std::vector<int32_t> end_tokens_;
  std::unordered_map<int32_t, TokenCount> counts_;
};

// Of logits that are adjusted already. Draws from softmax(logits / temperature), restricted in this
// order: the top_k largest, of those the fewest whose probabilities reach top_p, of those the ones
// with at least min_p of the largest probability. The draw is UniformAt(seed, position) into the
// kept ids in rising order. Ties of equal logits go to the lower id; logits that are not numbers
// count as minus infinity.
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
