#ifndef CONCLAVE_TESTS_GPU_AGREEMENT_H_
#define CONCLAVE_TESTS_GPU_AGREEMENT_H_

// How far a bf16 engine is from a float32 one.

#include <cstdint>
#include <span>
#include <vector>

#include "worker/transformer.h"
#include "worker/weights.h"

namespace conclave::gpu {

struct Agreement {
  double relative_rms = 0;  // RMS(got - want) / RMS(want)
  double worst = 0;         // max |got - want|, in standard deviations of `want`
  double min_cosine = 1;    // over the rows
};
// `got` and `want` [rows, cols].
Agreement Compare(std::span<const float> got, std::span<const float> want, int64_t cols);

// Logit of the last chosen expert less that of the best one left out, for each row of each layer,
// [layers][rows], in float64 from what the trace says its routers read.
std::vector<std::vector<double>> RouterGaps(const worker::Transformer::Trace& trace,
                                            const worker::RankWeights& weights, int k);

// Whether two rows of k expert ids are the same set.
bool SameExperts(std::span<const int32_t> a, std::span<const int32_t> b);

}  // namespace conclave::gpu

#endif  // CONCLAVE_TESTS_GPU_AGREEMENT_H_
