#ifndef CONCLAVE_BENCH_STEP_FLOOR_H_
#define CONCLAVE_BENCH_STEP_FLOOR_H_

// The bytes of weights that one decode step of a group has to read.

#include <cstdint>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::bench {

// Over all ranks of `shape`, for `batch` sequences spread over its groups: dense weights once in
// each group that has a sequence, and the experts that independent routing is expected to touch,
// E * (1 - (1 - k / E)^batch) in each layer. KV and activations are left out.
double DecodeStepBytes(const model::Config& config, const model::ModelTensors& tensors,
                       const model::ParallelShape& shape, int batch);

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_STEP_FLOOR_H_
