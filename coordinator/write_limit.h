#ifndef CONCLAVE_COORDINATOR_WRITE_LIMIT_H_
#define CONCLAVE_COORDINATOR_WRITE_LIMIT_H_

// Cancels a call whose client does not take what is written to it: the client's side of the
// connection may be well and answer pings for ever.

#include <grpcpp/server_context.h>

#include <cstddef>
#include <memory>

#include "absl/time/time.h"

namespace conclave::coordinator {

// Of one call. Thread-safe; a write costs it a lock and no timer.
class WriteLimit {
 public:
  // Borrows the context. `limit` is of one message, and a large one has longer, for lines are slow;
  // zero or less: none.
  WriteLimit(grpc::CallbackServerContext& context, absl::Duration limit);
  ~WriteLimit() { Leave(); }
  WriteLimit(const WriteLimit&) = delete;
  WriteLimit& operator=(const WriteLimit&) = delete;

  // A message of so many bytes is handed to gRPC, and has gone to the client. One at a time.
  void Begin(size_t bytes);
  void End();
  // In OnDone: the context is not touched any more.
  void Leave();

 private:
  struct State;

  std::shared_ptr<State> state_;  // null: no limit
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_WRITE_LIMIT_H_
