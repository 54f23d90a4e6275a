#ifndef CONCLAVE_KERNELS_CUDA_STEP_STAGE_H_
#define CONCLAVE_KERNELS_CUDA_STEP_STAGE_H_

// Brings what the host knows of a step to fixed places in device memory.
//
// Two page-locked buffers take turns, so that step n + 1 can be written while the copy of step n is
// still waiting in the stream; Begin waits for step n - 1 to be complete. On the device there is
// one place: the copy of step n + 1 comes after the kernels of step n in the stream.
//
//   | token ids, positions, run of row [max_rows] each | runs [max_runs] |
//   | sample rows, slots, parameters [max_samples] each | blocks [max_blocks] |
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
  int max_samples = 0;
  int64_t max_blocks = 0;      // entries of all block tables of a step
  int64_t argument_bytes = 0;  // of one step; more makes Put wait for the device
};

// The host-side bounds of a StepView.
struct StepShape {
  int rows = 0;
  int runs = 0;
  int samples = 0;
  int max_context = 0;
  int max_run_rows = 0;
  bool adjusts = false;  // some sampled row's logits are changed
};
// The batch's own.
StepShape ShapeOf(const StepBatch& batch);

class StepStage {
 public:
  static absl::StatusOr<std::unique_ptr<StepStage>> Create(const StepLimits& limits);
  ~StepStage();
  StepStage(const StepStage&) = delete;
  StepStage& operator=(const StepStage&) = delete;

  // One asynchronous copy. `shape` is at least the batch's own; what it has more is padding, of the
  // token 0 and no run, sampled at temperature 0 for no slot. The view is valid for kernels
  // enqueued until the next Begin; the batch is not needed any more.
  StepView Begin(const StepBatch& batch, const StepShape& shape, cudaStream_t stream);

  // Device memory, 16-byte aligned, that holds a copy of `bytes` of `host` for kernels enqueued
  // from now until the next Put or Begin. null when bytes = 0.
  const void* Put(const void* host, int64_t bytes, cudaStream_t stream);

 private:
  // Byte offsets in each buffer.
  struct Layout {
    int64_t token_ids, positions, run_of_row, runs, sample_rows, sample_slots, sample_params,
        blocks, arguments, end;
  };

  explicit StepStage(const StepLimits& limits);
  template <typename T>
  T* host(int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(host_[current_].memory.get()) + offset);
  }
  template <typename T>
  T* device(int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(device_.memory.get()) + offset);
  }
  void WriteRows(const StepBatch& batch, const StepShape& shape);
  // Returns the entries of all block tables.
  int64_t WriteRuns(const StepBatch& batch, const StepShape& shape);
  void WriteSamples(const StepBatch& batch, const StepShape& shape);

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
