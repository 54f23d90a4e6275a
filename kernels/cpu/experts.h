#ifndef CONCLAVE_KERNELS_CPU_EXPERTS_H_
#define CONCLAVE_KERNELS_CPU_EXPERTS_H_

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/expert_groups.h"
#include "kernels/cpu/expert_weights.h"

namespace conclave::kernels {

struct SwiGlu {
  float limit;
  float alpha;
};

// (min(up, limit) above -limit, plus 1) * gate * sigmoid(alpha * gate), gate at most `limit`.
float ClampedSwiGlu(float gate, float up, const SwiGlu& swiglu);

struct ExpertShape {
  int64_t hidden;
  int64_t intermediate;
  int64_t k;  // experts per token
  SwiGlu swiglu;
};

// activations [rows * k, I]; see Ops::ExpertGateUp. `packed` is scratch.
void RunGateUp(const CpuExperts& experts, const ExpertGroups& groups, const ExpertShape& shape,
               base::ThreadPool& pool, std::vector<float>& packed, float* activations);

// partial float64 [rows, H]; see Ops::ExpertDown. `packed` is scratch.
void RunDown(const CpuExperts& experts, const ExpertGroups& groups, const ExpertShape& shape,
             base::ThreadPool& pool, std::vector<float>& packed, const float* activations,
             double* partial);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_EXPERTS_H_
