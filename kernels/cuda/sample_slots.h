#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_SLOTS_H_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_SLOTS_H_

// Device memory for what the draws of a slot use beside their row's parameters: biases, end tokens,
// and a count for every token of the vocabulary (2 bytes each: 0.4 MB for gpt-oss). A slot's part
// is allocated when a sequence with such options first takes it, and kept: 256 slots that all had
// one hold 105 MB. A recorded step finds it through a table at a fixed place.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/sample_row.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

class SampleSlots {
 public:
  static absl::StatusOr<std::unique_ptr<SampleSlots>> Create(int max_sequences, int vocabulary);

  // As Ops::SetSlotSampling. Enqueues; what `sampling` points to is not needed any more.
  absl::Status Set(int slot, const SlotSampling& sampling, cudaStream_t stream);

  const SampleSlot* table() const { return static_cast<const SampleSlot*>(table_.memory.get()); }

 private:
  SampleSlots(int max_sequences, int vocabulary);
  absl::Status Allocate(int slot);
  absl::Status Count(const SlotSampling& sampling, TokenCount* counts, cudaStream_t stream);

  const int vocabulary_;
  Buffer table_;  // SampleSlot [max_sequences]
  std::vector<SampleSlot> slots_;
  std::vector<Buffer> memory_;           // [max_sequences], empty: not used yet
  std::vector<TokenCount> host_counts_;  // [vocabulary]
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_SLOTS_H_
