#ifndef CONCLAVE_COORDINATOR_REQUEST_LIMITS_H_
#define CONCLAVE_COORDINATOR_REQUEST_LIMITS_H_

// What one request costs, and whether the running group could ever serve it. Pure functions, so
// that Submit answers at once from the caller's own thread.

#include <cstddef>

#include "absl/status/status.h"
#include "coordinator/engine.h"
#include "coordinator/kv_blocks.h"

namespace conclave::coordinator {

struct RequestLimits {
  int context_length = 0;
  int window = 1;         // of the sliding layers
  int prefill_chunk = 1;  // longest chunk a sequence is computed in
  int num_heads = 0;
  BlockCount blocks;  // of one data-parallel group
};

// Tokens the request can generate: max_tokens, less what the context does not hold.
int CompletionLimit(const Request& request, int context_length);

// Positions computed at most. The last generated token is never computed.
int ComputeLimit(const Request& request, int context_length);

// INVALID_ARGUMENT for a request that makes no sense; RESOURCE_EXHAUSTED, with the numbers, for one
// that the KV cache could not hold even if it were alone.
absl::Status CheckRequest(const Request& request, const RequestLimits& limits);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REQUEST_LIMITS_H_
