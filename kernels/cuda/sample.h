#ifndef CONCLAVE_KERNELS_CUDA_SAMPLE_H_
#define CONCLAVE_KERNELS_CUDA_SAMPLE_H_

// Draws a token for each row of logits, by the rules of the CPU backend (kernels/cpu/sample.h): of
// softmax(logits / temperature) the top_k largest, of those the fewest that reach top_p, of those
// the ones with min_p of the largest probability; the draw is UniformAt(seed, position) into the
// kept ids in rising order; ties of equal logits go to the lower id; logits that are not numbers
// count as minus infinity.
//
//   SampleRows(logits, n, vocabulary, params, output, stream);
//
// Weights exp((logit - largest) / temperature) are made in float64 and added as integers of 2^-46:
// sums are exact and do not depend on their order. The CPU adds float64 values; the two differ
// where a bound (top_p, the draw) lies within about 1e-12 of an id's edge, and ids of weight under
// 2^-47 are never drawn here. A row with a logit that is not a number has log-probabilities here
// (it counts as minus infinity there too).
//
// SampleAdjustedRows first changes logits as the rows' parameters say (biases, penalties, end
// tokens of their slots; kernels/ops.h); log-probabilities stay those of the logits it is given.
// Kernels of its own, so that steps without such a row cost nothing more.
//
// A cluster of 8 blocks takes a row and, up to 425,000 logits, keeps it in shared memory: one read.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_row.h"

namespace conclave::kernels::cuda {

inline constexpr int kTopLogprobs = 20;

// Device memory. Of a row without log-probabilities: logprobs 0. The top list is filled up with
// token -1 and 0.
struct SampledRows {
  int32_t* tokens;      // [n]
  float* logprobs;      // [n]
  int32_t* top_tokens;  // [n, kTopLogprobs]
  float* top_logprobs;  // [n, kTopLogprobs]
};

// Whether a row of so many logits is kept in shared memory.
bool FitsSharedMemory(int vocabulary);

// logits f32 [n, vocabulary], params [n], device memory. Enqueues on `stream`; a launch failure is
// left for cudaGetLastError.
void SampleRows(const float* logits, int n, int vocabulary, const SampleRow* params,
                const SampledRows& output, cudaStream_t stream);

// As SampleRows; row i uses slots[slot_of_row[i]] (none if that is negative). Slots of one call
// differ. Device memory.
void SampleAdjustedRows(const float* logits, int n, int vocabulary, const SampleRow* params,
                        const int32_t* slot_of_row, const SampleSlot* slots,
                        const SampledRows& output, cudaStream_t stream);

// Counts tokens[i] in slots[slot_of_row[i]] for rows whose parameters say so.
void CountSampled(const int32_t* tokens, int n, const SampleRow* params, const int32_t* slot_of_row,
                  const SampleSlot* slots, cudaStream_t stream);

// Log-probabilities of targets [n], device memory, and the top most likely ones. output.tokens is
// not used.
void TargetLogprobs(const float* logits, int n, int vocabulary, const int32_t* targets, int top,
                    const SampledRows& output, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_SAMPLE_H_
