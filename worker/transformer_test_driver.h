#ifndef CONCLAVE_WORKER_TRANSFORMER_TEST_DRIVER_H_
#define CONCLAVE_WORKER_TRANSFORMER_TEST_DRIVER_H_

// Whole requests through a TransformerHarness.

#include <vector>

#include "absl/status/statusor.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/group_driver.h"
#include "worker/transformer_harness.h"

namespace conclave::worker {

// Runs all requests to their end, spread over the groups in turn; results in the requests' order.
// `chunk` tokens of a prompt at most in one step.
absl::StatusOr<std::vector<TestResult>> RunRequests(TransformerHarness& harness,
                                                    const std::vector<TestRequest>& requests,
                                                    int chunk, internal::v1::ExchangeMode mode);

// Logits f32 [positions, V] of each prompt, computed in chunks of `chunk`, all prompts side by
// side; world = 1.
absl::StatusOr<std::vector<std::vector<float>>> TraceLogits(
    TransformerHarness& harness, const std::vector<std::vector<int>>& prompts, int chunk);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_TEST_DRIVER_H_
