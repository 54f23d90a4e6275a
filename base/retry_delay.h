#ifndef CONCLAVE_BASE_RETRY_DELAY_H_
#define CONCLAVE_BASE_RETRY_DELAY_H_

// A status that says when to try again: google.rpc.RetryInfo as a payload, which ToGrpc and
// FromGrpc (base/grpc_status.h) carry in the call's status details.

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace conclave::base {

// `status`, not OK, with the delay. Finite and not negative.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The delay that `status` carries, if any.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_RETRY_DELAY_H_
