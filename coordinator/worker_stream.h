#ifndef CONCLAVE_COORDINATOR_WORKER_STREAM_H_
#define CONCLAVE_COORDINATOR_WORKER_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "coordinator/worker_link.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

using WorkerReactor =
    grpc::ServerBidiReactor<internal::v1::WorkerMessage, internal::v1::CoordinatorMessage>;

// The server side of one Join call: what the worker says goes to `events`, what its WorkerLink is
// given is written in order, one message at a time. The reactor owns itself and ends with the call.
WorkerReactor* StartWorkerStream(WorkerId worker, WorkerEvents& events,
                                 grpc::CallbackServerContext& context);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_WORKER_STREAM_H_
