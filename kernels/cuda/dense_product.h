#ifndef CONCLAVE_KERNELS_CUDA_DENSE_PRODUCT_H_
#define CONCLAVE_KERNELS_CUDA_DENSE_PRODUCT_H_

// Chooses the kernels of a dense product by the table in dense.h.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/dense_lt.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

class DenseProduct {
 public:
  // Room for the norm of `max_rows` rows of `hidden` values.
  static absl::StatusOr<std::unique_ptr<DenseProduct>> Create(int max_rows, int64_t hidden);

  // Segments that lie one after the other in memory become one. With a norm, input.rows <= max_rows
  // and input.cols == hidden; a gather needs a norm.
  absl::Status Run(std::span<const DenseSegment> segments, const DenseInput& input,
                   const DenseOutput& output, cudaStream_t stream);

 private:
  DenseProduct() = default;
  absl::Status RunMany(const DenseSegment& segment, const DenseInput& input,
                       const DenseOutput& output, cudaStream_t stream);

  std::unique_ptr<DenseLt> lt_;
  Buffer normed_;  // bf16 [max_rows, hidden]
  int max_rows_ = 0;
  int64_t hidden_ = 0;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DENSE_PRODUCT_H_
