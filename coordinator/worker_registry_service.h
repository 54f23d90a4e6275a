#ifndef CONCLAVE_COORDINATOR_WORKER_REGISTRY_SERVICE_H_
#define CONCLAVE_COORDINATOR_WORKER_REGISTRY_SERVICE_H_

// The workers' end of the coordinator: their streams, and the rendezvous of their communicators.
// Thin: streams become WorkerEvents and WorkerLinks, rendezvous calls go to the store.

#include <atomic>

#include "coordinator/rendezvous.h"
#include "coordinator/worker_link.h"
#include "proto/conclave/internal/v1/worker.grpc.pb.h"

namespace conclave::coordinator {

// Borrows both; they outlive the server that the service is registered with.
class WorkerRegistryService final : public internal::v1::WorkerRegistry::CallbackService {
 public:
  WorkerRegistryService(WorkerEvents& events, Rendezvous& rendezvous)
      : events_(events), rendezvous_(rendezvous) {}

  grpc::ServerBidiReactor<internal::v1::WorkerMessage, internal::v1::CoordinatorMessage>* Join(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Put(grpc::CallbackServerContext* context,
                                const internal::v1::PutRequest* request,
                                internal::v1::PutResponse* response) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context,
                                const internal::v1::GetRequest* request,
                                internal::v1::GetResponse* response) override;

 private:
  WorkerEvents& events_;
  Rendezvous& rendezvous_;
  std::atomic<WorkerId> next_worker_{1};
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_WORKER_REGISTRY_SERVICE_H_
