#include "worker/health_listener.h"

#include <fmt/format.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <utility>

namespace conclave::worker {
namespace {

// A worker is ready when it is alive: what it does is the coordinator's to say.
void Publish(grpc::HealthCheckServiceInterface& health, bool alive) {
  for (const char* service : {"", "liveness", "readiness"}) {
    health.SetServingStatus(service, alive);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HealthListener>> HealthListener::Start(const std::string& address,
                                                                      std::function<bool()> alive,
                                                                      absl::Duration interval) {
  grpc::EnableDefaultHealthCheckService(true);
  std::unique_ptr<HealthListener> listener(new HealthListener);
  grpc::ServerBuilder builder;
  // Answers UNIMPLEMENTED. gRPC will not start a server that has nothing but its own health
  // service.
  listener->others_ = std::make_unique<grpc::CallbackGenericService>();
  builder.RegisterCallbackGenericService(listener->others_.get());
  // A second worker on the same port is an error, not a half of the answers.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &listener->port_);
  listener->server_ = builder.BuildAndStart();
  if (listener->server_ == nullptr || listener->port_ == 0) {
    return absl::UnavailableError(
        fmt::format("cannot listen on '{}' for health checks: in use, or not HOST:PORT of this "
                    "machine",
                    address));
  }
  grpc::HealthCheckServiceInterface* health = listener->server_->GetHealthCheckService();
  bool was_alive = alive();
  Publish(*health, was_alive);
  listener->watcher_ = std::thread([health, was_alive, alive = std::move(alive), interval,
                                    &stopped = listener->stopped_]() mutable {
    while (!stopped.WaitForNotificationWithTimeout(interval)) {
      // Watchers hear of every call, of those too that change nothing.
      if (alive() != was_alive) Publish(*health, was_alive = !was_alive);
    }
  });
  return listener;
}

HealthListener::~HealthListener() {
  if (watcher_.joinable()) {
    stopped_.Notify();
    watcher_.join();
  }
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

}  // namespace conclave::worker
