#include "kernels/cpu/expert_groups.h"

#include "base/check.h"

namespace conclave::kernels {
namespace {

template <typename T>
const T* Field(const std::byte* base, int64_t stride, int64_t slot) {
  return reinterpret_cast<const T*>(base + slot * stride);
}

}  // namespace

ExpertGroups GroupByExpert(const ExpertTokens& tokens, int num_experts, int k) {
  ExpertGroups out;
  std::vector<std::vector<ExpertJob>> jobs(num_experts);
  for (int source = 0; source < tokens.num_sources; ++source) {
    const int32_t count = tokens.count(source);
    // Before anything is read by it: in fixed mode it came over the wire.
    CONCLAVE_CHECK(count >= 0 &&
                   static_cast<int64_t>(out.copies.size()) + count <= tokens.max_copies);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = tokens.first_slot[source] + i;
      const auto copy = static_cast<int32_t>(out.copies.size());
      out.copies.push_back({Field<float>(tokens.hidden, tokens.hidden_stride, slot),
                            tokens.first_output[source] + i});
      const auto* ids = Field<int32_t>(tokens.expert_ids, tokens.expert_ids_stride, slot);
      const auto* weights = Field<float>(tokens.weights, tokens.weights_stride, slot);
      for (int32_t j = 0; j < k; ++j) {
        if (ids[j] < 0) continue;
        CONCLAVE_CHECK(ids[j] < num_experts);
        if (tokens.local_index[ids[j]] >= 0) jobs[ids[j]].push_back({copy, j, weights[j]});
      }
    }
  }
  for (int id = 0; id < num_experts; ++id) {
    if (!jobs[id].empty()) out.groups.push_back({id, tokens.local_index[id], std::move(jobs[id])});
  }
  return out;
}

}  // namespace conclave::kernels
