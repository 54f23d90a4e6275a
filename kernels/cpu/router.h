#ifndef CONCLAVE_KERNELS_CPU_ROUTER_H_
#define CONCLAVE_KERNELS_CPU_ROUTER_H_

#include <cstdint>

namespace conclave::kernels {

// The k largest of `logits` [experts], by falling logit, ties by rising id; entries of `forced` [k]
// that are not negative replace the choice at their place (null: none). `weights` [k] is the
// softmax over the chosen logits.
void ChooseExperts(const float* logits, int experts, int k, const int32_t* forced,
                   int32_t* expert_ids, float* weights);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_ROUTER_H_
