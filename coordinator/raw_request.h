#ifndef CONCLAVE_COORDINATOR_RAW_REQUEST_H_
#define CONCLAVE_COORDINATOR_RAW_REQUEST_H_

// Parsing of request bytes at the RPC edge. gRPC's own parser answers INTERNAL without a reason
// when a string is not UTF-8; a caller deserves the field's name. So the services take raw bytes.

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace conclave::coordinator {

// Fills `message`. INVALID_ARGUMENT names the field whose text is not UTF-8, or says that the bytes
// are not a message of the type.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer SerializeResponse(const google::protobuf::Message& message);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_RAW_REQUEST_H_
