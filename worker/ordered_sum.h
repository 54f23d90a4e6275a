#ifndef CONCLAVE_WORKER_ORDERED_SUM_H_
#define CONCLAVE_WORKER_ORDERED_SUM_H_

// Sums whose order is fixed, so that every rank gets the same bits whatever arrived first.

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace conclave::worker {

// out[i] = parts[0][i] + parts[1][i] + ..., left to right; `parts` is [count][values] without gaps.
// f32 or f64. `out` does not overlap `parts`.
void OrderedSum(kernels::DType dtype, const std::byte* parts, int count, int64_t values, void* out);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_ORDERED_SUM_H_
