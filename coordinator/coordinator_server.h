#ifndef CONCLAVE_COORDINATOR_COORDINATOR_SERVER_H_
#define CONCLAVE_COORDINATOR_COORDINATOR_SERVER_H_

// The whole coordinator: model, engine, public and internal servers.
//
//   ASSIGN_OR_RETURN(auto server, CoordinatorServer::Start(options));
//   ... server->listen_address() ...
//   server->Stop();

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/engine_loop.h"
#include "coordinator/protection.h"
#include "coordinator/serving_model.h"

namespace conclave::coordinator {

struct CoordinatorOptions {
  ServingModelOptions model;
  EngineOptions engine;  // shape and limits; what follows from the model is filled in by Start
  std::string listen;    // public API, HOST:PORT; port 0 takes a free one
  std::string internal_listen;  // workers
  std::string health_listen;    // plaintext health; empty: none
  std::string metrics_listen;   // HTTP for Prometheus; empty: none
  ProtectionOptions protection;
};

// All methods from one thread.
class CoordinatorServer {
 public:
  // Refuses what cannot work (files, heads, shape, addresses) before it listens.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(CoordinatorOptions options);
  virtual ~CoordinatorServer() = default;

  // HOST:PORT with the port that was bound.
  virtual std::string listen_address() const = 0;
  virtual std::string internal_address() const = 0;
  virtual std::string health_address() const = 0;  // empty: none, and so below
  virtual std::string metrics_address() const = 0;

  // Takes no more work; `done` is called by any thread when none is left, or the limit
  // (EngineOptions) has passed. Stop follows.
  virtual void Drain(std::function<void()> done) = 0;

  // Ends every request with UNAVAILABLE, then the servers. Returns within seconds.
  virtual void Stop() = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_COORDINATOR_SERVER_H_
