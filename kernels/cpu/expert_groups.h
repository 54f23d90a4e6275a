#ifndef CONCLAVE_KERNELS_CPU_EXPERT_GROUPS_H_
#define CONCLAVE_KERNELS_CPU_EXPERT_GROUPS_H_

// Which copies each local expert has to compute in a step: every expert's weights are then read
// once for all its tokens.

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace conclave::kernels {

// One choice of one copy.
struct ExpertJob {
  int32_t copy;    // index into ExpertGroups::copies
  int32_t choice;  // j < k
  float weight;
};

struct ExpertCopy {
  const float* hidden;  // activation [H]
  int64_t output_row;   // of activations (times k) and partial
};

struct ExpertGroup {
  int global_id;
  int local;
  std::vector<ExpertJob> jobs;  // by source, then copy, then choice
};

struct ExpertGroups {
  std::vector<ExpertCopy> copies;   // every valid copy, by source, then copy
  std::vector<ExpertGroup> groups;  // by ascending global id, none empty
};

// Reads counts, ids and weights of valid copies and nothing of the padding.
ExpertGroups GroupByExpert(const ExpertTokens& tokens, int num_experts, int k);

}  // namespace conclave::kernels

#endif  // CONCLAVE_KERNELS_CPU_EXPERT_GROUPS_H_
