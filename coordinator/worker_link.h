#ifndef CONCLAVE_COORDINATOR_WORKER_LINK_H_
#define CONCLAVE_COORDINATOR_WORKER_LINK_H_

// The two directions between the engine's thread and one worker's stream, free of RPC types so that
// tests put fakes in either place.

#include <cstdint>
#include <memory>
#include <string>

#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// One stream of one worker; a worker that joins again is another one.
using WorkerId = uint64_t;

// Towards the worker. Thread-safe; calls never block, whatever the peer does, and are ignored after
// the stream has ended.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  // Delivered in order.
  virtual void Send(internal::v1::CoordinatorMessage message) = 0;
  // Ends the stream after what was sent before.
  virtual void Close() = 0;
  // Cuts the stream now; what is queued is lost. For a peer that no longer reads.
  virtual void Abort() = 0;
};

// From the workers. Called by any thread; for one worker in order and one at a time. Must not
// block.
class WorkerEvents {
 public:
  virtual ~WorkerEvents() = default;
  // The stream is open; its first message follows.
  virtual void OnWorkerJoined(WorkerId worker, std::shared_ptr<WorkerLink> link) = 0;
  virtual void OnWorkerMessage(WorkerId worker, internal::v1::WorkerMessage message) = 0;
  // Nothing follows. `why` is for the log.
  virtual void OnWorkerGone(WorkerId worker, const std::string& why) = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_WORKER_LINK_H_
