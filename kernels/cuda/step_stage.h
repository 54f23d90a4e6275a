#ifndef CONCLAVE_KERNELS_CUDA_STEP_STAGE_H_
#define CONCLAVE_KERNELS_CUDA_STEP_STAGE_H_

// Brings what the host knows of a step to fixed places in device memory.
//
// Two page-locked buffers take turns, so that step n + 1 can be written while the copy of step n is
// still waiting in the stream; Begin waits for step n - 1 to be complete. On the device there is
// one place: the copy of step n + 1 comes after the kernels of step n in the stream.
//
//   | token ids, positions, run of row [max_rows] each | runs [max_runs] | blocks [max_blocks] |
//   | arguments: what Put adds, in the order of the calls |

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/step_view.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

struct StepLimits {
  int max_rows = 0;
  int max_runs = 0;
  int64_t max_blocks = 0;      // entries of all block tables of a step
  int64_t argument_bytes = 0;  // of one step; more makes Put wait for the device
};

class StepStage {
 public:
  static absl::StatusOr<std::unique_ptr<StepStage>> Create(const StepLimits& limits);
  ~StepStage();
  StepStage(const StepStage&) = delete;
  StepStage& operator=(const StepStage&) = delete;

  // One asynchronous copy. The view and the host memory behind `batch`: the view is valid for
  // kernels enqueued until the next Begin, the batch is not needed any more.
  StepView Begin(const StepBatch& batch, cudaStream_t stream);

  // Device memory, 16-byte aligned, that holds a copy of `bytes` of `host` for kernels enqueued
  // from now until the next Put or Begin. null when bytes = 0.
  const void* Put(const void* host, int64_t bytes, cudaStream_t stream);

 private:
  // Byte offsets in each buffer.
  struct Layout {
    int64_t token_ids, positions, run_of_row, runs, blocks, arguments, end;
  };

  explicit StepStage(const StepLimits& limits);
  std::byte* host() const { return static_cast<std::byte*>(host_[current_].memory.get()); }
  std::byte* device() const { return static_cast<std::byte*>(device_.memory.get()); }

  const StepLimits limits_;
  Layout layout_ = {};
  Buffer host_[2];
  Buffer device_;
  cudaEvent_t done_[2] = {};  // the last kernel that may need the copy from host_[i]
  int current_ = 0;
  int64_t argument_end_ = 0;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STEP_STAGE_H_
