#include "worker/weights_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "model/mxfp4.h"
#include "worker/weights_generator.h"
#include "worker/weights_pager.h"

namespace conclave::worker {
namespace {

// Scales of one projection of one expert.
absl::Status CheckScales(const uint8_t* scales, int64_t size, const model::TensorView& view,
                         int expert) {
  const uint8_t largest = *std::max_element(scales, scales + size);
  if (largest <= model::kMaxMxfp4Scale) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: {} of expert {} holds the scale byte {}; the largest that float32 can hold "
                  "is {}",
                  view.file, view.name, expert, largest, model::kMaxMxfp4Scale));
}

// What becomes of one layer.
struct LayerMove {
  std::vector<int> experts;  // global ids, ascending
  std::vector<kernels::HostExpert> host;
  std::vector<int> kept;  // [experts] index in the set of before, -1: to load
  WeightSlicer fresh;     // what is to load
  WeightSlicer dropped;

  bool changes() const { return !fresh.regions().empty() || !dropped.regions().empty(); }
};

class Mover {
 public:
  Mover(const model::Config& config, const WeightsRequest& request, kernels::Ops& ops,
        RankWeights& weights, const std::function<bool(int64_t loaded, int64_t total)>& progress)
      : config_(config),
        request_(request),
        ops_(ops),
        weights_(weights),
        checkpoint_(*weights.checkpoint),
        progress_(progress) {}

  absl::StatusOr<int64_t> Run();

 private:
  absl::StatusOr<LayerMove> Plan(int layer);
  absl::Status BringIn(const WeightSlicer& slicer);
  absl::Status Move(int layer, LayerMove& move);

  const model::Config& config_;
  const WeightsRequest& request_;
  kernels::Ops& ops_;
  RankWeights& weights_;
  const model::Checkpoint& checkpoint_;
  const std::function<bool(int64_t loaded, int64_t total)>& progress_;
  int64_t loaded_ = 0;
  int64_t total_ = 0;
};

absl::StatusOr<int64_t> Mover::Run() {
  std::vector<LayerMove> moves;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    ASSIGN_OR_RETURN(LayerMove move, Plan(layer));
    total_ += move.fresh.bytes();
    moves.push_back(std::move(move));
  }
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    if (moves[layer].changes()) RETURN_IF_ERROR(Move(layer, moves[layer]));
  }
  return loaded_;
}

absl::StatusOr<LayerMove> Mover::Plan(int layer) {
  const model::LayerTensors& tensors = checkpoint_.tensors().layers[layer];
  const std::vector<int>& held = weights_.layers[layer].local_experts;
  LayerMove move;
  move.experts = request_.placement->layers[layer].ExpertsOf(request_.rank);
  WeightSlicer kept;
  for (const int expert : move.experts) {
    const auto found = std::lower_bound(held.begin(), held.end(), expert);
    const bool here = found != held.end() && *found == expert;
    move.kept.push_back(here ? static_cast<int>(found - held.begin()) : -1);
    ASSIGN_OR_RETURN(const kernels::HostExpert host,
                     SliceExpert(checkpoint_, tensors, expert, here ? kept : move.fresh));
    move.host.push_back(host);
  }
  for (const int expert : held) {
    if (std::binary_search(move.experts.begin(), move.experts.end(), expert)) continue;
    RETURN_IF_ERROR(SliceExpert(checkpoint_, tensors, expert, move.dropped).status());
  }
  return move;
}

absl::Status Mover::BringIn(const WeightSlicer& slicer) {
  const auto progress = [this](int64_t bytes) {
    loaded_ += bytes;
    return progress_(loaded_, total_);
  };
  if (!checkpoint_.is_random()) return PageIn(slicer.regions(), progress);
  base::ThreadPool pool(request_.threads);
  return GenerateWeights(checkpoint_, slicer.regions(), pool, progress);
}

absl::Status Mover::Move(int layer, LayerMove& move) {
  RETURN_IF_ERROR(BringIn(move.fresh));
  for (size_t i = 0; i < move.experts.size(); ++i) {
    if (move.kept[i] >= 0) continue;
    RETURN_IF_ERROR(CheckExpertScales(config_, checkpoint_.tensors().layers[layer], move.experts[i],
                                      move.host[i]));
  }
  LayerWeights& out = weights_.layers[layer];
  ASSIGN_OR_RETURN(out.experts,
                   ops_.LoadExperts(move.host, {.from = out.experts.get(), .index = move.kept}));
  out.local_experts = move.experts;
  weights_.bytes += move.fresh.bytes() - move.dropped.bytes();
  GiveBack(move.dropped.regions());
  if (ops_.info().device == "cuda") GiveBack(move.fresh.regions());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<kernels::HostExpert> SliceExpert(const model::Checkpoint& checkpoint,
                                                const model::LayerTensors& tensors, int expert,
                                                WeightSlicer& slicer) {
  kernels::HostExpert host;
  if (checkpoint.layout() == model::Layout::kBf16) {
    ASSIGN_OR_RETURN(host.gate_up_dense, slicer.Bf16Entry(tensors.gate_up_dense, expert));
    ASSIGN_OR_RETURN(host.down_dense, slicer.Bf16Entry(tensors.down_dense, expert));
  } else {
    ASSIGN_OR_RETURN(host.gate_up_blocks, slicer.BytesEntry(tensors.gate_up_blocks, expert));
    ASSIGN_OR_RETURN(host.gate_up_scales, slicer.BytesEntry(tensors.gate_up_scales, expert));
    ASSIGN_OR_RETURN(host.down_blocks, slicer.BytesEntry(tensors.down_blocks, expert));
    ASSIGN_OR_RETURN(host.down_scales, slicer.BytesEntry(tensors.down_scales, expert));
  }
  ASSIGN_OR_RETURN(host.gate_up_bias, slicer.Bf16Entry(tensors.gate_up_bias, expert));
  ASSIGN_OR_RETURN(host.down_bias, slicer.Bf16Entry(tensors.down_bias, expert));
  return host;
}

absl::Status CheckExpertScales(const model::Config& config, const model::LayerTensors& tensors,
                               int expert, const kernels::HostExpert& host) {
  if (host.gate_up_scales == nullptr) return absl::OkStatus();
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.intermediate_size;
  RETURN_IF_ERROR(CheckScales(host.gate_up_scales, 2 * intermediate * (hidden / 32),
                              tensors.gate_up_scales, expert));
  return CheckScales(host.down_scales, hidden * (intermediate / 32), tensors.down_scales, expert);
}

absl::StatusOr<int64_t> MoveExperts(
    const model::Config& config, const WeightsRequest& request, kernels::Ops& ops,
    RankWeights& weights, const std::function<bool(int64_t loaded, int64_t total)>& progress) {
  return Mover(config, request, ops, weights, progress).Run();
}

}  // namespace conclave::worker
