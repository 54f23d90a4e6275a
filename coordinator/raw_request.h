#ifndef CONCLAVE_COORDINATOR_RAW_REQUEST_H_
#define CONCLAVE_COORDINATOR_RAW_REQUEST_H_

// Parsing of request bytes at the RPC edge. gRPC's own parser answers INTERNAL without a reason
// when a string is not UTF-8; a caller deserves the field's name. So the services take raw bytes.

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::coordinator {

// Fills `message`. INVALID_ARGUMENT names the field whose text is not UTF-8, or says that the bytes
// are not a message of the type.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

// Of a message that cannot be large.
grpc::ByteBuffer SerializeResponse(const google::protobuf::Message& message);

// A reply that is made in parts, each gone before the next is made: messages of its type, whose
// repeated fields follow each other on the wire.
class ReplyParts {
 public:
  // For all of them together.
  explicit ReplyParts(int max_bytes) : max_bytes_(static_cast<size_t>(max_bytes)) {}

  void Append(const google::protobuf::Message& part);

  // Once, after the last. RESOURCE_EXHAUSTED when they were more than they may be.
  absl::StatusOr<grpc::ByteBuffer> Take();

 private:
  const size_t max_bytes_;
  size_t bytes_ = 0;
  std::vector<grpc::Slice> slices_;
};

// RESOURCE_EXHAUSTED. `what` is it that there is too much of.
absl::Status ReplyTooLarge(std::string_view what, int max_bytes);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_RAW_REQUEST_H_
