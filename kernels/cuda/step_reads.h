#ifndef CONCLAVE_KERNELS_CUDA_STEP_READS_H_
#define CONCLAVE_KERNELS_CUDA_STEP_READS_H_

// What steps bring back to the host while later ones are enqueued already: Ops::StartReads.
//
// A step's copies go to a page-locked area of its own; an event says when they are there.

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

class StepReads {
 public:
  StepReads() = default;
  ~StepReads();
  StepReads(const StepReads&) = delete;
  StepReads& operator=(const StepReads&) = delete;

  // Once. `step_bytes`: of all sources of one step together.
  absl::Status Allocate(int64_t step_bytes);

  absl::Status Start(std::span<const Tensor> sources, cudaStream_t stream);
  // Of the oldest; true if there is none.
  bool Done() const;
  // Waits for the oldest, copies to `hosts`.
  absl::Status Take(std::span<void* const> hosts);
  // Forgets all; what was enqueued must be complete.
  void Clear() { unfinished_ = 0; }

 private:
  struct Step {
    Buffer area;
    cudaEvent_t done = nullptr;
    std::array<int64_t, kMaxReads> bytes = {};
    int count = 0;
  };
  Step& Oldest() { return steps_[(next_ + kMaxStepsAhead - unfinished_) % kMaxStepsAhead]; }

  std::array<Step, kMaxStepsAhead> steps_;
  int next_ = 0;
  int unfinished_ = 0;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STEP_READS_H_
