#ifndef CONCLAVE_TESTS_E2E_GOLDEN_H_
#define CONCLAVE_TESTS_E2E_GOLDEN_H_

// Prompts with known answers for the service as a whole, and the calls that ask for them.

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/conclave/v1/generation.grpc.pb.h"

namespace conclave::tests {

using Tokens = std::vector<uint32_t>;

struct GoldenCase {
  Tokens prompt;
  Tokens greedy;  // 24 tokens, end tokens ignored; fewer where the file's own are not the arg-max
};

// What Transformers generates in float32 (tests/goldens).
std::vector<GoldenCase> LoadGoldens();

// `count` prompts of 1 to `max_length` tokens below 496 (no special ones), from a fixed seed.
std::vector<Tokens> RandomPrompts(int count, int max_length);

// A greedy request that ignores end tokens.
v1::GenerateRequest GreedyRequest(const Tokens& prompt, int max_tokens);

// One stream to its end. The status of the call when it is not OK.
absl::StatusOr<Tokens> GenerateOne(const std::shared_ptr<grpc::Channel>& channel,
                                   const v1::GenerateRequest& request);

// All prompts in one GenerateBatch.
absl::StatusOr<std::vector<Tokens>> GenerateTogether(const std::shared_ptr<grpc::Channel>& channel,
                                                     const std::vector<Tokens>& prompts,
                                                     int max_tokens);

// The logits of a head for all of its goldens, in one call, to 1e-4. An empty name: the only one.
void ExpectSequenceGoldens(const std::shared_ptr<grpc::Channel>& channel, const std::string& head);
void ExpectTokenGoldens(const std::shared_ptr<grpc::Channel>& channel, const std::string& head);

}  // namespace conclave::tests

#endif  // CONCLAVE_TESTS_E2E_GOLDEN_H_
