#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_

#include <cstdint>

#include "kernels/penalties.h"

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
  bool biased = false;
  bool counted = false;
  bool mask_ends = false;
  Penalties penalties = {};
};

// What SetSlotSampling gave a slot, device memory. Null, and no entries, before its first call.
struct SampleSlot {
  const int32_t* bias_tokens = nullptr;
  const float* biases = nullptr;
  const int32_t* end_tokens = nullptr;
  int32_t num_biases = 0;
  int32_t num_end_tokens = 0;
  TokenCount* counts = nullptr;  // [vocabulary]
  // [vocabulary], room for a row's changed logits; null where a row fits shared memory.
  float* adjusted = nullptr;
};

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_ROW_H_
