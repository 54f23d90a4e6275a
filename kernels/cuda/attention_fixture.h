#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_FIXTURE_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_FIXTURE_H_

// Made-up steps for tests and benchmarks of attention, and a float64 reference on the device.

#include <cstdint>
#include <vector>

#include "kernels/cuda/rope.h"
#include "kernels/cuda/step_view.h"

namespace conclave::kernels::cuda {

struct RunSpec {
  int rows;
  int start_position;
};

// A step in host memory: StepView's arrays and bounds, and the sizes of the two caches. Block
// tables are shuffled; some blocks of the caches belong to nobody.
struct HostStep {
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> run_of_row;
  std::vector<RunView> run;
  std::vector<int32_t> blocks;
  int max_context = 0;
  int max_run_rows = 0;
  int full_blocks = 0;
  int sliding_blocks = 0;
};

// `spare_rows` and `spare_runs` follow that belong to nothing, as in a bucket.
HostStep MakeHostStep(const std::vector<RunSpec>& runs, int window, int spare_rows, int spare_runs,
                      uint32_t seed);

// Fills with random numbers what the step's rows see of `cache`, and leaves the rest: of each run
// the positions from the first that its first row sees up to its last row, or only up to before
// its first if `past_only`. All in device memory.
void FillVisible(const StepView& view, const AttentionShape& shape, const KvPages& cache,
                 bool past_only, uint32_t seed, float deviation, cudaStream_t stream);

struct SampledHead {
  int32_t row;
  int32_t head;
};

// out [count, D]: attention of the sampled rows and heads in float64. `scratch` holds
// count * view.max_context values.
void ReferenceAttention(const StepView& view, const AttentionShape& shape, const KvPages& cache,
                        const __nv_bfloat16* sinks, const __nv_bfloat16* qkv,
                        const SampledHead* sampled, int count, double* scratch, double* out,
                        cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_FIXTURE_H_
