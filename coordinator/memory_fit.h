#ifndef CONCLAVE_COORDINATOR_MEMORY_FIT_H_
#define CONCLAVE_COORDINATOR_MEMORY_FIT_H_

// Sizes the KV cache and decides, before anything is loaded, whether a group can hold the model.
// Pure functions over what the workers reported and what the checkpoint's headers say.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/kv_blocks.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Memory that one rank would use, as its worker reported it.
struct RankMemory {
  std::string host_id;  // equal for ranks that share one host's memory, or one GPU's
  bool cuda = false;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
  int64_t held_bytes = 0;  // of the last epoch: freed, or used again, in the next one
};

// What the group needs, whoever runs it.
struct MemoryNeeds {
  std::vector<int64_t> weight_bytes;  // [world]
  // Each rank's weights are memory of its own, not pages of a file that the ranks share.
  bool weights_are_private = false;
  int64_t model_bytes = 0;       // of the whole checkpoint
  int64_t activation_bytes = 0;  // of one rank
  // One block in all layers of its kind on one rank.
  int64_t full_block_bytes = 0;
  int64_t sliding_block_bytes = 0;
  int max_running = 0;  // sequences of one group
  // The most blocks of one sequence that fills the context.
  BlockCount per_sequence;
  int decoding_sliding = 0;  // the most sliding ones that it holds once its prompt is computed
};

// Blocks for `max_running` sequences that fill the context, or as many as `budget` bytes hold.
// Sliding blocks first, up to half of the budget: each sequence needs its window, and a few at a
// time those of a chunk of their prompt. Of what full blocks could use too they get no more than
// the prefix cache makes of them, a window for every kCheckpointTokens. FAILED_PRECONDITION, with
// the numbers, when not even one window and one full block fit.
absl::StatusOr<internal::v1::CacheShape> SizeCache(const MemoryNeeds& needs, int64_t budget);

// The cache every rank allocates. `kv_cache_bytes` per rank; 0: what max_running sequences at the
// context length need, but at most 10 % of a host's free memory over its ranks (on a GPU, what the
// weights leave of its memory less 7 %, or 2 GiB for each of its ranks where that is more, or of
// what is free). FAILED_PRECONDITION, naming the host or rank with all its numbers, when it does
// not fit. Weights on the CPU that are mapped from files are pages that the ranks of a host share;
// they count against its total memory, not against what is free.
absl::StatusOr<internal::v1::CacheShape> FitMemory(const MemoryNeeds& needs,
                                                   std::span<const RankMemory> ranks,
                                                   int64_t kv_cache_bytes);

// Whether ranks that are loaded can take `more` [world] bytes of memory of their own each.
// FAILED_PRECONDITION, naming the host or rank with the numbers.
absl::Status CheckRoom(std::span<const RankMemory> ranks, std::span<const int64_t> more);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_MEMORY_FIT_H_
