#ifndef CONCLAVE_WORKER_WEIGHTS_EXPERTS_H_
#define CONCLAVE_WORKER_WEIGHTS_EXPERTS_H_

// The experts among a rank's weights, which alone depend on the placement.

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "kernels/weights.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/placement.h"
#include "worker/weights.h"
#include "worker/weights_slice.h"

namespace conclave::worker {

// Cuts one expert of `tensors` out of the map.
absl::StatusOr<kernels::HostExpert> SliceExpert(const model::Checkpoint& checkpoint,
                                                const model::LayerTensors& tensors, int expert,
                                                WeightSlicer& slicer);

// INVALID_ARGUMENT naming file, tensor and expert for MXFP4 scales that can overflow. Reads them.
absl::Status CheckExpertScales(const model::Config& config, const model::LayerTensors& tensors,
                               int expert, const kernels::HostExpert& host);

// Makes the experts of `weights` those that `request` places on its rank: loads what is missing
// (from the checkpoint that the weights came from), keeps what is there, lets go of the rest, a
// layer at a time, so that a layer more than either set is resident at most. Returns the bytes
// loaded; `progress` as in LoadRankWeights, of these bytes. After an error some layers have their
// new experts and others the old ones; LayerWeights::local_experts tells which.
absl::StatusOr<int64_t> MoveExperts(
    const model::Config& config, const WeightsRequest& request, kernels::Ops& ops,
    RankWeights& weights, const std::function<bool(int64_t loaded, int64_t total)>& progress);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_WEIGHTS_EXPERTS_H_
