#ifndef CONCLAVE_WORKER_WEIGHTS_SLICE_H_
#define CONCLAVE_WORKER_WEIGHTS_SLICE_H_

// Cuts one rank's share out of the tensors of a checkpoint, without reading them. Every cut names
// the region of the map it covers, so that the share can be paged in and counted.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/weights.h"
#include "model/safetensors.h"
#include "worker/weights_pager.h"

namespace conclave::worker {

// Collects the regions of the cuts it makes. The shapes of the views are checked by whoever opened
// them; a tensor that is not bf16 or lies at an odd address is INVALID_ARGUMENT.
class WeightSlicer {
 public:
  // Rows [begin, begin + rows) of `view` [*, cols].
  absl::StatusOr<kernels::HostMatrix> Rows(const model::TensorView& view, int64_t begin,
                                           int64_t rows);
  // Columns [begin, begin + cols) of `view` [rows, *].
  absl::StatusOr<kernels::HostMatrix> Columns(const model::TensorView& view, int64_t begin,
                                              int64_t cols);
  // Values [begin, begin + size) of `view` [*]; empty for an empty view.
  absl::StatusOr<std::span<const uint16_t>> Values(const model::TensorView& view, int64_t begin,
                                                   int64_t size);
  // Element `index` of the first dimension of a bf16 tensor.
  absl::StatusOr<const uint16_t*> Bf16Entry(const model::TensorView& view, int64_t index);
  // Element `index` of the first dimension of a U8 tensor.
  absl::StatusOr<const uint8_t*> BytesEntry(const model::TensorView& view, int64_t index);

  const std::vector<MappedRegion>& regions() const { return regions_; }
  int64_t bytes() const;

 private:
  std::vector<MappedRegion> regions_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_WEIGHTS_SLICE_H_
