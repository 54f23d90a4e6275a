#ifndef CONCLAVE_KERNELS_CUDA_STEP_VIEW_H_
#define CONCLAVE_KERNELS_CUDA_STEP_VIEW_H_

// The step as kernels see it: StepBatch (kernels/ops.h) copied to fixed places in device memory, so
// that a captured CUDA graph finds the next step's numbers where the last one's were.
//
// Launch geometry follows the host-side bounds (`rows`, `max_*`), never the step's exact numbers:
// rows past the step's last have run_of_row = -1, and a kernel that touches the cache or the runs
// skips them. What other kernels compute for such rows is never read.

#include <cstdint>

#include "kernels/cuda/sample_row.h"

namespace conclave::kernels::cuda {

// SequenceRun in device memory; block tables as offsets into StepView::blocks.
struct RunView {
  int32_t slot;
  int32_t first_row;
  int32_t rows;
  int32_t start_position;
  int32_t full_offset;     // block of positions [16 i, 16 i + 16) at blocks[full_offset + i]
  int32_t sliding_offset;  // ... at blocks[sliding_offset + i - sliding_first]
  int32_t sliding_first;
};

struct StepView {
  // Host-side bounds; equal for all steps that run the same graph.
  int rows = 0;         // launched rows: the step's, or its bucket
  int runs = 0;         // launched runs
  int max_context = 0;  // at least every position + 1
  int max_run_rows = 0;

  // Device memory.
  const int32_t* token_ids = nullptr;   // [rows] an id, or -1 - slot
  const int32_t* positions = nullptr;   // [rows]
  const int32_t* run_of_row = nullptr;  // [rows] index into `run`, -1: no row of the step
  const RunView* run = nullptr;         // [runs] rows = 0: no run of the step
  const int32_t* blocks = nullptr;
  const int32_t* sample_rows = nullptr;      // [samples]
  const SampleRow* sample_params = nullptr;  // [samples]
  const int32_t* sample_slots = nullptr;     // [samples] -1: none
  int samples = 0;                           // launched, a host-side bound too
  bool adjusts = false;                      // the host's too: some sampled row's logits change
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STEP_VIEW_H_
