#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_

#include <cstdint>

namespace conclave::kernels::cuda {

// kernels::SampleParams as the device reads it: same meaning.
struct SampleRow {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  int32_t position = 0;
  int32_t logprobs = -1;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_
