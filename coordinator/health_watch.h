#ifndef CONCLAVE_COORDINATOR_HEALTH_WATCH_H_
#define CONCLAVE_COORDINATOR_HEALTH_WATCH_H_

// Keeps grpc.health.v1 of the coordinator's servers true: "" and "readiness" say whether work is
// done or could be, "liveness" whether the control loop answers.

#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"

namespace grpc {
class Server;
}  // namespace grpc

namespace conclave::coordinator {

class HealthWatch {
 public:
  // Servers built with gRPC's default health service; they outlive the watch. The probes are called
  // ten times a second from the watch's thread. Leaves the servers not ready when it ends.
  HealthWatch(std::vector<grpc::Server*> servers, std::function<bool()> ready,
              std::function<bool()> live);
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

 private:
  void Publish();

  std::vector<grpc::Server*> servers_;
  std::function<bool()> ready_;
  std::function<bool()> live_;
  std::optional<std::pair<bool, bool>> published_;  // ready, live
  absl::Notification stopped_;
  std::thread thread_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_HEALTH_WATCH_H_
