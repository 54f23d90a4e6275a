#include "model/placement.h"

#include <algorithm>

#include "fmt/format.h"

namespace conclave::model {
namespace {

// The `index`-th of `parts` contiguous ranges of [0, total), the larger ones first.
Range EvenRange(int total, int parts, int index) {
  const int size = total / parts;
  const int larger = total % parts;
  const int begin = index * size + std::min(index, larger);
  return {begin, begin + size + (index < larger ? 1 : 0)};
}

}  // namespace

absl::StatusOr<ParallelShape> ResolveShape(int workers, int dp, int tp) {
  if (workers < 1 || dp < 0 || tp < 0) {
    return absl::InvalidArgumentError(fmt::format(
        "workers {}, dp {}, tp {}: at least one worker, and no negative numbers", workers, dp, tp));
  }
  if (dp == 0 && tp == 0) tp = 1;
  if (dp == 0) dp = workers / tp;
  if (tp == 0) tp = workers / dp;
  if (int64_t{dp} * tp != workers) {
    return absl::InvalidArgumentError(
        fmt::format("dp {} x tp {} is {}, not the {} workers", dp, tp, int64_t{dp} * tp, workers));
  }
  return ParallelShape{dp, tp};
}

absl::Status CheckShape(const Config& config, const ParallelShape& shape) {
  if (config.num_kv_heads % shape.tp != 0) {
    return absl::InvalidArgumentError(fmt::format("tp {} does not divide the model's {} KV heads",
                                                  shape.tp, config.num_kv_heads));
  }
  if (shape.world() > config.num_experts) {
    return absl::InvalidArgumentError(
        fmt::format("dp {} x tp {} is {} ranks, more than the {} experts of a layer", shape.dp,
                    shape.tp, shape.world(), config.num_experts));
  }
  return absl::OkStatus();
}

std::vector<int> LayerPlacement::ExpertsOf(int rank) const {
  std::vector<int> experts;
  for (size_t expert = 0; expert < ranks_of_expert.size(); ++expert) {
    const std::vector<int>& ranks = ranks_of_expert[expert];
    if (std::binary_search(ranks.begin(), ranks.end(), rank)) {
      experts.push_back(static_cast<int>(expert));
    }
  }
  return experts;
}

Placement BalancedPlacement(const Config& config, int world) {
  LayerPlacement layer;
  layer.ranks_of_expert.resize(static_cast<size_t>(config.num_experts));
  for (int rank = 0; rank < world; ++rank) {
    const Range range = EvenRange(config.num_experts, world, rank);
    for (int expert = range.begin; expert < range.end; ++expert) {
      layer.ranks_of_expert[static_cast<size_t>(expert)] = {rank};
    }
  }
  Placement placement;
  placement.world = world;
  placement.layers.assign(static_cast<size_t>(config.num_layers), layer);
  return placement;
}

Range VocabRange(const Config& config, int tp, int tp_rank) {
  return EvenRange(config.vocab_size, tp, tp_rank);
}

Range KvHeadRange(const Config& config, int tp, int tp_rank) {
  return EvenRange(config.num_kv_heads, tp, tp_rank);
}

}  // namespace conclave::model
