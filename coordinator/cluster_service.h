#ifndef CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_
#define CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_

#include "coordinator/engine.h"
#include "coordinator/unary.h"
#include "proto/conclave/v1/cluster.grpc.pb.h"

namespace conclave::coordinator {

// The state of the group, as the engine reports it, and what operators may have it do.
class ClusterServiceImpl final
    : public v1::ClusterService::WithRawCallbackMethod_GetCluster<
          v1::ClusterService::WithRawCallbackMethod_Rebalance<v1::ClusterService::Service>> {
 public:
  explicit ClusterServiceImpl(Engine& engine) : engine_(engine) {}  // borrowed

  grpc::ServerUnaryReactor* GetCluster(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override {
    return AnswerUnary<v1::GetClusterRequest, v1::GetClusterResponse>(
        context, *bytes, response, [this](const auto&, v1::GetClusterResponse* reply) {
          *reply = engine_.Snapshot();
          return absl::OkStatus();
        });
  }

  // Answered when the experts have moved, which goes on if the caller leaves.
  grpc::ServerUnaryReactor* Rebalance(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* bytes,
                                      grpc::ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    v1::RebalanceRequest request;
    if (const absl::Status parsed = ParseRequest(*bytes, &request); !parsed.ok()) {
      reactor->Finish(base::ToGrpc(parsed));
      return reactor;
    }
    engine_.Rebalance(request, [reactor, response](absl::StatusOr<v1::RebalanceResponse> result) {
      if (result.ok()) *response = SerializeResponse(*result);
      reactor->Finish(base::ToGrpc(result.status()));
    });
    return reactor;
  }

 private:
  Engine& engine_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_SERVICE_H_
