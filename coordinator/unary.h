#ifndef CONCLAVE_COORDINATOR_UNARY_H_
#define CONCLAVE_COORDINATOR_UNARY_H_

// A unary call that is answered at once, on gRPC's thread.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/grpc_status.h"
#include "coordinator/call_record.h"
#include "coordinator/engine.h"
#include "coordinator/raw_request.h"

namespace conclave::coordinator {

// Parses `bytes`, calls answer(request, &reply) -> absl::Status, and finishes the call. `engine`
// counts it.
template <typename RequestProto, typename ReplyProto, typename Answer>
grpc::ServerUnaryReactor* AnswerUnary(Method method, Engine& engine,
                                      grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                                      Answer answer) {
  CallRecord record(method, *context, engine.calls());
  RequestProto request;
  ReplyProto reply;
  absl::Status status = ParseRequest(bytes, &request);
  if (status.ok()) status = answer(request, &reply);
  if (status.ok()) {
    ReplyParts whole(std::numeric_limits<int>::max());
    whole.Append(reply);
    absl::StatusOr<grpc::ByteBuffer> taken = whole.Take();
    if (taken.ok()) *response = *std::move(taken);
    status = taken.status();
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const grpc::Status ended = base::ToGrpc(status);
  record.End(ended);
  reactor->Finish(ended);
  return reactor;
}

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_UNARY_H_
