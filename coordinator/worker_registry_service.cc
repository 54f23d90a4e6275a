#include "coordinator/worker_registry_service.h"

#include <memory>
#include <string>
#include <utility>

#include "base/grpc_status.h"
#include "coordinator/worker_stream.h"

namespace conclave::coordinator {
namespace {

// A Get that waits for its value without a thread. The store calls back on whatever thread settles
// it, possibly before Start returns; the client may give up at any time.
class GetCall final : public grpc::ServerUnaryReactor {
 public:
  GetCall(Rendezvous& rendezvous, internal::v1::GetResponse& response)
      : rendezvous_(rendezvous), response_(response) {}

  void Start(const internal::v1::GetRequest& request) {
    // `this` may be gone as soon as the callback has run.
    const std::shared_ptr<Waiting> waiting = waiting_;
    Rendezvous& rendezvous = rendezvous_;
    const Rendezvous::WaiterId waiter =
        rendezvous.Get(request.epoch(), request.key(),
                       [this](absl::StatusOr<std::string> value) { Settle(std::move(value)); });
    waiting->waiter.store(waiter);
    if (waiting->cancelled.load()) rendezvous.CancelGet(waiter);
  }

  void OnCancel() override {
    waiting_->cancelled.store(true);
    if (const Rendezvous::WaiterId waiter = waiting_->waiter.load()) rendezvous_.CancelGet(waiter);
  }

  void OnDone() override { delete this; }

 private:
  struct Waiting {
    std::atomic<Rendezvous::WaiterId> waiter{0};
    std::atomic<bool> cancelled{false};
  };

  void Settle(absl::StatusOr<std::string> value) {
    if (!value.ok()) return Finish(base::ToGrpc(value.status()));
    response_.set_value(*std::move(value));
    Finish(grpc::Status::OK);
  }

  Rendezvous& rendezvous_;
  internal::v1::GetResponse& response_;
  const std::shared_ptr<Waiting> waiting_ = std::make_shared<Waiting>();
};

}  // namespace

grpc::ServerBidiReactor<internal::v1::WorkerMessage, internal::v1::CoordinatorMessage>*
WorkerRegistryService::Join(grpc::CallbackServerContext* context) {
  return StartWorkerStream(next_worker_.fetch_add(1), events_, *context);
}

grpc::ServerUnaryReactor* WorkerRegistryService::Put(grpc::CallbackServerContext* context,
                                                     const internal::v1::PutRequest* request,
                                                     internal::v1::PutResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(
      base::ToGrpc(rendezvous_.Put(request->epoch(), request->key(), request->value())));
  return reactor;
}

grpc::ServerUnaryReactor* WorkerRegistryService::Get(grpc::CallbackServerContext*,
                                                     const internal::v1::GetRequest* request,
                                                     internal::v1::GetResponse* response) {
  auto* call = new GetCall(rendezvous_, *response);
  call->Start(*request);
  return call;
}

}  // namespace conclave::coordinator
