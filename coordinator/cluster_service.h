#ifndef CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_
#define CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_

#include "coordinator/engine.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"

namespace conclave::coordinator {

// The state of the group, as the engine reports it, and what operators may have it do.
class ClusterServiceImpl final
    : public v1::ClusterService::WithRawCallbackMethod_GetCluster<
          v1::ClusterService::WithRawCallbackMethod_Rebalance<
              v1::ClusterService::WithRawCallbackMethod_Drain<v1::ClusterService::Service>>> {
 public:
  explicit ClusterServiceImpl(Engine& engine) : engine_(engine) {}  // borrowed

  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override;
  // Answered when the experts have moved, which goes on if the caller leaves.
  grpc::ServerUnaryReactor* Rebalance(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* bytes,
                                      grpc::ByteBuffer* response) override;
  // Answered when nothing is under way any more, likewise.
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* bytes,
                                  grpc::ByteBuffer* response) override;

 private:
  Engine& engine_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_
