#ifndef CONCLAVE_KERNELS_CUDA_DENSE_LT_H_
#define CONCLAVE_KERNELS_CUDA_DENSE_LT_H_

// Dense products of many rows by cuBLASLt. The algorithm for a size is the heuristic's first, asked
// for once, never timed: the same size runs the same way every time. bf16 in, float32 accumulation,
// split sums reduced in float32 from a workspace of fixed size.
//
// One thread, one stream at a time (the workspace is shared).

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/dense.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

class DenseLt {
 public:
  static absl::StatusOr<std::unique_ptr<DenseLt>> Create();
  ~DenseLt();
  DenseLt(const DenseLt&) = delete;
  DenseLt& operator=(const DenseLt&) = delete;

  // Columns [0, segment.rows) of out = x weight^T + bias. No norm, no gather. False, and nothing is
  // enqueued, when cuBLASLt has no way to do it.
  absl::StatusOr<bool> Multiply(const DenseSegment& segment, const DenseInput& input,
                                const DenseOutput& output, cudaStream_t stream);

 private:
  struct Plan;
  // Sizes, strides, types, the pointers' alignments: all that the choice depends on.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int, bool, int, int, int>;

  DenseLt() = default;
  absl::StatusOr<const Plan*> FindPlan(const Key& key);

  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DENSE_LT_H_
