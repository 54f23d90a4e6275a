#ifndef CONCLAVE_WORKER_AGENT_STREAM_H_
#define CONCLAVE_WORKER_AGENT_STREAM_H_

// One WorkerRegistry.Join stream as the worker sees it.

#include <memory>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/conclave/internal/v1/worker.grpc.pb.h"

namespace conclave::worker {

class AgentStream {
 public:
  // Dials; a coordinator that is not there shows as the first Read that fails.
  explicit AgentStream(internal::v1::WorkerRegistry::StubInterface& stub);

  // One thread. Waits for the next message; false when the stream has ended.
  bool Read(internal::v1::CoordinatorMessage* message);

  // Any thread. Waits until the transport has taken the message, so that a result is on its way
  // when this returns. A message for a broken stream is dropped: its end shows in Read.
  void Send(const internal::v1::WorkerMessage& message);

  // Any thread: Read returns false and Send drops from now on.
  void Cancel();

  // Once, after Read returned false. Why the stream ended.
  absl::Status Finish();

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriterInterface<internal::v1::WorkerMessage,
                                                    internal::v1::CoordinatorMessage>>
      stream_;
  absl::Mutex write_mutex_;  // one write at a time; guards broken_
  bool broken_ = false;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_AGENT_STREAM_H_
