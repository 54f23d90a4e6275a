#ifndef CONCLAVE_COORDINATOR_TRANSLATE_H_
#define CONCLAVE_COORDINATOR_TRANSLATE_H_

// Requests of the public API to domain types. Everything a client can get wrong is found here:
// INVALID_ARGUMENT names the field, as a path from the request, and the number.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

// Token ids of `prompt`, at least one and at most `max_tokens` of them. `field` is its path.
absl::StatusOr<std::vector<int32_t>> TranslatePrompt(const ServingModel& model,
                                                     const v1::Prompt& prompt,
                                                     const std::string& field, int max_tokens);

// All but the sink, the deadline, and who asks. `prefix` is the request's path ("" or
// "requests[3].").
absl::StatusOr<Request> TranslateGenerate(const ServingModel& model,
                                          const v1::GenerateRequest& request,
                                          const std::string& prefix);

// The same for a Chat, and who asks.
absl::StatusOr<Request> TranslateChat(const ServingModel& model, const v1::ChatRequest& request,
                                      const std::string& peer);

// One request for each of the `n` completions, equal but for their seeds; all but the sink and the
// deadline. `peer` is the client's address, as gRPC tells it.
absl::StatusOr<std::vector<Request>> TranslateCompletions(const ServingModel& model,
                                                          const v1::GenerateRequest& request,
                                                          const std::string& prefix,
                                                          const std::string& peer);

// How much of the service a request may claim: its priority, and whose share it comes from.
absl::Status TranslateClaim(int priority, const std::string& user, const std::string& prefix,
                            const std::string& peer, Request& out);

// Refuses an empty batch and one that is too large, before any of its entries costs anything.
// `field` names the list.
absl::Status CheckBatchSize(const std::string& field, int size);

// Refuses a call whose prompts have so many tokens, each counted as often as it is computed:
// completions and labels multiply what a message holds.
absl::Status CheckCallTokens(const ServingModel& model, const std::string& field, int64_t tokens);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_TRANSLATE_H_
