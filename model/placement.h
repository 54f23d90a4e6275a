#ifndef CONCLAVE_MODEL_PLACEMENT_H_
#define CONCLAVE_MODEL_PLACEMENT_H_

// Which ranks hold which expert of which layer. A pure function of (shape, world, load): every
// process that computes it gets the same answer.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace conclave::model {

// World = dp x tp ranks; rank = dp_rank * tp + tp_rank.
struct ParallelShape {
  int dp = 1;
  int tp = 1;
  int world() const { return dp * tp; }
  int dp_rank(int rank) const { return rank / tp; }
  int tp_rank(int rank) const { return rank % tp; }
};

// `dp` or `tp` 0 means not given: tp defaults to 1, dp to workers / tp; dp alone implies
// tp = workers / dp. INVALID_ARGUMENT when the result is not whole or contradicts `workers`.
absl::StatusOr<ParallelShape> ResolveShape(int workers, int dp, int tp);

// INVALID_ARGUMENT, with the numbers, when `tp` does not divide the KV heads or the world is larger
// than the experts of a layer.
absl::Status CheckShape(const Config& config, const ParallelShape& shape);

struct LayerPlacement {
  // [experts] ranks that hold it, ascending, never empty; the first is the primary.
  std::vector<std::vector<int>> ranks_of_expert;
  // Experts that `rank` holds, ascending: its local index is the position in this list.
  std::vector<int> ExpertsOf(int rank) const;
};

struct Placement {
  int world = 0;
  std::vector<LayerPlacement> layers;
};

// Contiguous ranges as even as they get: 128 experts over 6 ranks give 22 22 21 21 21 21.
Placement BalancedPlacement(const Config& config, int world);

// Longest-processing-time assignment of observed load, `load` = [layers, experts] token counts.
// Every rank holds the same number of experts of a layer (within one); `replicas` extra copies per
// layer (as many as ranks without one exist, at most) go to the experts whose copies carry most, on
// the ranks with the least load. A rank holds an expert once; its copies share its load equally.
Placement PlacementFromLoad(const Config& config, int world, std::span<const uint64_t> load,
                            int replicas);

// The range of vocabulary rows / KV heads that `tp_rank` holds: [begin, end).
struct Range {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
};
Range VocabRange(const Config& config, int tp, int tp_rank);
Range KvHeadRange(const Config& config, int tp, int tp_rank);

}  // namespace conclave::model

#endif  // CONCLAVE_MODEL_PLACEMENT_H_
