#ifndef CONCLAVE_BASE_GRPC_STATUS_H_
#define CONCLAVE_BASE_GRPC_STATUS_H_

// absl::Status inside, grpc::Status at the RPC edge: the same codes, the same message. Payloads
// travel as the details of a google.rpc.Status (trailing metadata grpc-status-details-bin).
// Messages past 1,000 bytes are cut: gRPC drops a status whose metadata are too large.

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace conclave::base {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_GRPC_STATUS_H_
