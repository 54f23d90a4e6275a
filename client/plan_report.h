#ifndef CONCLAVE_CLIENT_PLAN_REPORT_H_
#define CONCLAVE_CLIENT_PLAN_REPORT_H_

// What each rank of a group would hold, before anything is loaded.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/json_shapes.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/memory_plan.h"
#include "model/placement.h"

namespace conclave::client {

struct PlanReport {
  std::string model_dir;
  model::Config config;
  model::Layout layout = model::Layout::kMxfp4;
  model::ParallelShape shape;
  model::Placement placement;
  std::vector<model::RankBytes> weights;  // [world]
  // Bytes of K and V that one token takes on each rank of its group, over all layers of the kind.
  int64_t kv_full = 0;
  int64_t kv_sliding = 0;
};

// Reads headers only. `shape` has passed model::CheckShape. `bytes_per_kv_value` is 4 on the CPU,
// 2 on CUDA.
absl::StatusOr<PlanReport> MakePlan(const std::string& model_dir, const model::Config& config,
                                    const model::ParallelShape& shape, int bytes_per_kv_value);

Json PlanJson(const PlanReport& plan);

// The sizes of every rank, and which experts it holds.
std::string PlanText(const PlanReport& plan);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_PLAN_REPORT_H_
