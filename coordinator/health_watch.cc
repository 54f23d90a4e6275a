#include "coordinator/health_watch.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>

#include <utility>

#include "absl/time/time.h"

namespace conclave::coordinator {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(100);

}  // namespace

HealthWatch::HealthWatch(std::vector<grpc::Server*> servers, std::function<bool()> ready,
                         std::function<bool()> live)
    : servers_(std::move(servers)), ready_(std::move(ready)), live_(std::move(live)) {
  Publish();  // gRPC starts out SERVING: correct it before anybody asks
  thread_ = std::thread([this] {
    while (!stopped_.WaitForNotificationWithTimeout(kInterval)) Publish();
  });
}

HealthWatch::~HealthWatch() {
  stopped_.Notify();
  thread_.join();
  for (grpc::Server* server : servers_) {
    server->GetHealthCheckService()->SetServingStatus("", false);
    server->GetHealthCheckService()->SetServingStatus("readiness", false);
  }
}

void HealthWatch::Publish() {
  const bool ready = ready_();
  const bool live = live_();
  // Watchers hear of every SetServingStatus, of those too that change nothing.
  if (published_ == std::pair(ready, live)) return;
  published_ = {ready, live};
  for (grpc::Server* server : servers_) {
    grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
    health->SetServingStatus("", ready);
    health->SetServingStatus("readiness", ready);
    health->SetServingStatus("liveness", live);
  }
}

}  // namespace conclave::coordinator
