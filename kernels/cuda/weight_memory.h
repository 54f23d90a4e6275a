#ifndef CONCLAVE_KERNELS_CUDA_WEIGHT_MEMORY_H_
#define CONCLAVE_KERNELS_CUDA_WEIGHT_MEMORY_H_

// Dense weights and vectors in device memory, uploaded from the file map.
//
// Uploads go through two page-locked pieces: while one is on its way, the next is filled. Matrices
// that are loaded one after the other lie one after the other (rows of 256 bytes or multiples), so
// that q, k and v of a layer are one matrix. Memory is taken in slabs, freed with the last weight.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/dense.h"
#include "kernels/tensor.h"
#include "kernels/weights.h"

namespace conclave::kernels::cuda {

class WeightMemory {
 public:
  // Uploads are ordered with what else is enqueued on `stream`.
  static absl::StatusOr<std::unique_ptr<WeightMemory>> Create(cudaStream_t stream);
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  // Dense rows. Takes a new slab unless this one has room for `with_next` bytes more: those of the
  // matrices that should follow side by side. Host memory is not needed after the return.
  absl::StatusOr<DenseWeight> LoadMatrix(const HostMatrix& matrix, int64_t with_next);

  // Also keeps the values in float32; see Float32. No values: null.
  absl::StatusOr<VectorWeight> LoadVector(std::span<const uint16_t> values);

  // The float32 copy of a vector of LoadVector; null for a null vector.
  static const float* Float32(const VectorWeight& vector);

 private:
  struct Slab;

  explicit WeightMemory(cudaStream_t stream) : stream_(stream) {}
  absl::StatusOr<std::byte*> Take(int64_t bytes, int64_t with_next);
  // Page-locked bytes, at most kPieceBytes, that no copy uses any more.
  absl::StatusOr<std::byte*> NextPiece();
  absl::Status Send(void* device, int64_t bytes);
  absl::Status UploadRows(const HostMatrix& matrix, std::byte* device);

  const cudaStream_t stream_;
  std::shared_ptr<Slab> matrices_;
  int64_t next_slab_bytes_ = 0;
  std::shared_ptr<Slab> vectors_;
  Buffer pieces_[2];
  cudaEvent_t sent_[2] = {};
  int piece_ = 0;
};

// Weights of LoadMatrix and LoadVector as a part of a dense product.
DenseSegment SegmentOf(const DenseWeight& weight, const VectorWeight& bias);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_WEIGHT_MEMORY_H_
