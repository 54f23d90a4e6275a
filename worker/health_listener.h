#ifndef CONCLAVE_WORKER_HEALTH_LISTENER_H_
#define CONCLAVE_WORKER_HEALTH_LISTENER_H_

// grpc.health.v1 on a listener of its own, plaintext and unauthenticated: is this process alive?

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace conclave::worker {

class HealthListener {
 public:
  // Serves on `address` (HOST:PORT, port 0: any that is free) and asks `alive` every `interval`:
  // SERVING while it says yes, under the names "", "liveness" and "readiness". UNAVAILABLE when the
  // address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<HealthListener>> Start(const std::string& address,
                                                               std::function<bool()> alive,
                                                               absl::Duration interval);
  ~HealthListener();

  int port() const { return port_; }

 private:
  HealthListener() = default;

  int port_ = 0;
  std::unique_ptr<grpc::CallbackGenericService> others_;
  std::unique_ptr<grpc::Server> server_;
  absl::Notification stopped_;
  std::thread watcher_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_HEALTH_LISTENER_H_
