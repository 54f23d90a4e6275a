#ifndef CONCLAVE_COORDINATOR_ASSIGNMENT_H_
#define CONCLAVE_COORDINATOR_ASSIGNMENT_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "coordinator/cluster_member.h"
#include "coordinator/cluster_options.h"
#include "coordinator/memory_fit.h"
#include "coordinator/rebalance_plan.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// What every rank of an epoch is told; only `rank` differs between them. `continues` as in
// Assignment.
internal::v1::Assignment MakeAssignment(const ClusterOptions& options, uint64_t epoch,
                                        const internal::v1::CacheShape& cache, bool continues);

// Whether these workers, `by_rank` [world], can hold the model, and the cache they then allocate
// (FitMemory).
absl::StatusOr<internal::v1::CacheShape> FitMembers(const ClusterOptions& options,
                                                    std::span<const ClusterMember* const> by_rank);

// Whether these workers, `by_rank` [world] and loaded, can change to the experts that `moves` tells
// of: a layer's new set is loaded beside the old one. Weights served from the file map need no
// room.
absl::Status FitMoves(const ClusterOptions& options, std::span<const ClusterMember* const> by_rank,
                      std::span<const RankMoves> moves);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ASSIGNMENT_H_
