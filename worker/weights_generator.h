#ifndef CONCLAVE_WORKER_WEIGHTS_GENERATOR_H_
#define CONCLAVE_WORKER_WEIGHTS_GENERATOR_H_

// Writes made-up weights where those of a file would be paged in.

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "base/thread_pool.h"
#include "model/checkpoint.h"
#include "worker/weights_pager.h"

namespace conclave::worker {

// Generates `regions` of `checkpoint`, which is random, on all threads of `pool`. `progress` as in
// PageIn, called every 64 MiB or less.
absl::Status GenerateWeights(const model::Checkpoint& checkpoint,
                             std::span<const MappedRegion> regions, base::ThreadPool& pool,
                             const std::function<bool(int64_t bytes)>& progress);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_WEIGHTS_GENERATOR_H_
