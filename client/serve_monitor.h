#ifndef CONCLAVE_CLIENT_SERVE_MONITOR_H_
#define CONCLAVE_CLIENT_SERVE_MONITOR_H_

// Watches a coordinator from a thread of its own, so that the thread that owns the children never
// waits for an answer.

#include <string>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "client/client.h"

namespace conclave::client {

// What the coordinator last said. A coordinator that did not answer: not serving, no ranks.
struct ServeSnapshot {
  bool serving = false;
  v1::GetClusterResponse cluster;
};

class ServeMonitor {
 public:
  // Starts watching `server`.
  explicit ServeMonitor(const std::string& server);
  ~ServeMonitor();

  // Readable when there is something new to take.
  int fd() const { return event_fd_; }
  ServeSnapshot Take();

 private:
  void Watch();
  ServeSnapshot Ask();

  Client client_;
  const int event_fd_;
  Cancellation cancellation_;
  absl::Mutex mutex_;  // guards both fields below
  bool stop_ = false;
  ServeSnapshot snapshot_;
  std::thread thread_;  // last: starts when the rest exists
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_MONITOR_H_
