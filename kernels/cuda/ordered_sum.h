#ifndef CONCLAVE_KERNELS_CUDA_ORDERED_SUM_H_
#define CONCLAVE_KERNELS_CUDA_ORDERED_SUM_H_

// The sum of what several ranks hold, in the order of the ranks: the same bits on every rank.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

// Part p of `count` lies at parts + p * stride; part `own` lies at own_part instead.
struct PartsToSum {
  const void* parts = nullptr;
  int64_t stride = 0;  // bytes
  int count = 0;
  int own = 0;
  const void* own_part = nullptr;
};

// out[i] = part 0's value i + part 1's + ..., added in float32 and rounded once; i < values. f32 or
// bf16. `out` may be own_part. One launch; 16-byte accesses where every pointer and the stride are
// multiples of 16 bytes.
void OrderedSum(DType dtype, const PartsToSum& parts, int64_t values, void* out,
                cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ORDERED_SUM_H_
