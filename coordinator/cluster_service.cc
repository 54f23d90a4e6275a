#include "coordinator/cluster_service.h"

#include <memory>

#include "coordinator/call_record.h"
#include "coordinator/unary.h"

namespace conclave::coordinator {
namespace {

// A call that `start(request, done)` answers later, through done(StatusOr<Reply>), on any thread.
template <typename Request, typename Reply, typename Start>
grpc::ServerUnaryReactor* AnswerLater(Method method, Engine& engine,
                                      grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                                      Start start) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto record = std::make_shared<CallRecord>(method, *context, engine.calls());
  const auto done = [reactor, response, record](absl::StatusOr<Reply> result) {
    if (result.ok()) *response = SerializeResponse(*result);
    const grpc::Status status = base::ToGrpc(result.status());
    record->End(status);
    reactor->Finish(status);
  };
  Request request;
  if (const absl::Status parsed = ParseRequest(bytes, &request); !parsed.ok()) {
    done(parsed);
  } else {
    start(request, done);
  }
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ClusterServiceImpl::GetCluster(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* bytes,
                                                         grpc::ByteBuffer* response) {
  return AnswerUnary<v1::GetClusterRequest, v1::GetClusterResponse>(
      Method::kGetCluster, engine_, context, *bytes, response,
      [this](const auto&, v1::GetClusterResponse* reply) {
        *reply = engine_.Snapshot();
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ClusterServiceImpl::Rebalance(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* bytes,
                                                        grpc::ByteBuffer* response) {
  return AnswerLater<v1::RebalanceRequest, v1::RebalanceResponse>(
      Method::kRebalance, engine_, context, *bytes, response,
      [this](const auto& request, const auto& done) { engine_.Rebalance(request, done); });
}

grpc::ServerUnaryReactor* ClusterServiceImpl::Drain(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* bytes,
                                                    grpc::ByteBuffer* response) {
  return AnswerLater<v1::DrainRequest, v1::DrainResponse>(
      Method::kDrain, engine_, context, *bytes, response,
      [this](const auto& request, const auto& done) { engine_.Drain(request, done); });
}

}  // namespace conclave::coordinator
