#include "kernels/cpu/router.h"

#include <algorithm>
#include <cmath>

namespace conclave::kernels {
namespace {

// Insertion into a short sorted list: k is 4 in every released model. A later id passes only
// smaller logits, so ties keep rising ids. A logit that is not a number comes last.
void TopExperts(const float* logits, int experts, int k, int32_t* ids) {
  int chosen = 0;
  for (int expert = 0; expert < experts; ++expert) {
    int place = chosen;
    while (place > 0 && (logits[expert] > logits[ids[place - 1]] ||
                         (std::isnan(logits[ids[place - 1]]) && !std::isnan(logits[expert])))) {
      --place;
    }
    if (place == k) continue;
    chosen = std::min(chosen + 1, k);
    for (int i = chosen - 1; i > place; --i) ids[i] = ids[i - 1];
    ids[place] = expert;
  }
}

}  // namespace

void ChooseExperts(const float* logits, int experts, int k, const int32_t* forced,
                   int32_t* expert_ids, float* weights) {
  TopExperts(logits, experts, k, expert_ids);
  float maximum = -HUGE_VALF;
  for (int i = 0; i < k; ++i) {
    if (forced != nullptr && forced[i] >= 0) expert_ids[i] = forced[i];
    maximum = std::max(maximum, logits[expert_ids[i]]);
  }
  float sum = 0;
  for (int i = 0; i < k; ++i) {
    weights[i] = std::exp(logits[expert_ids[i]] - maximum);
    sum += weights[i];
  }
  for (int i = 0; i < k; ++i) weights[i] /= sum;
}

}  // namespace conclave::kernels
