#ifndef CONCLAVE_WORKER_NCCL_SESSION_H_
#define CONCLAVE_WORKER_NCCL_SESSION_H_

// One NCCL communicator: its connection, groups of transfers, and its end.
//
// NCCL is used without blocking calls: each of them starts a thread of NCCL's and returns, so that
// no thread of ours is caught in a call whose peer is gone. Two threads use the communicator: the
// step thread, and the monitor, which notices NCCL's asynchronous errors and aborts. ncclCommAbort
// makes the kernels that wait for a peer leave the stream, then waits for the graphs that captured
// calls of this communicator; it is the monitor that waits, not the caller of Fail.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/nccl_api.h"
#include "worker/nccl_communicator.h"

namespace conclave::worker {

class NcclSession {
 public:
  // As ConnectNccl, up to the exchange.
  static absl::StatusOr<std::unique_ptr<NcclSession>> Connect(const std::string& group, int rank,
                                                              int size, Rendezvous& rendezvous,
                                                              const NcclOptions& options,
                                                              absl::Time deadline);
  ~NcclSession();
  NcclSession(const NcclSession&) = delete;
  NcclSession& operator=(const NcclSession&) = delete;

  // What goes to and comes from one peer. Nothing is transferred where bytes are 0.
  struct Transfer {
    int peer = 0;
    const void* send = nullptr;
    int64_t send_bytes = 0;
    void* recv = nullptr;
    int64_t recv_bytes = 0;
  };
  // Enqueues all of them at once: they make progress together. The step thread.
  absl::Status Enqueue(std::span<const Transfer> transfers);

  // Any thread. The first failure counts: it is what status() says from then on, and what waits on
  // the stream comes out.
  void Fail(std::string_view reason);
  // Called once with the first failure, now if it is there. It must not call the session. Until
  // the session ends.
  void OnFailure(std::function<void()> act);
  absl::Status status();

  int rank() const { return rank_; }
  int size() const { return size_; }
  cudaStream_t stream() const { return stream_; }

 private:
  NcclSession(const NcclApi& api, std::string group, int rank, int size, ncclComm_t comm,
              const NcclOptions& options);

  ncclResult_t StartGroup(std::span<const Transfer> transfers)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits until NCCL has put the group on the stream.
  absl::Status AwaitLaunch();
  // NCCL's asynchronous state; a failure is kept.
  ncclResult_t Poll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(std::string_view reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Failure() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Ending() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return failed_ || closed_; }
  void Monitor();

  const NcclApi& api_;
  const std::string group_;
  const int rank_;
  const int size_;
  const int device_;
  const cudaStream_t stream_;

  absl::Mutex mutex_;  // orders the two threads' calls of NCCL; guards what follows
  ncclComm_t comm_ ABSL_GUARDED_BY(mutex_);  // null once the monitor aborts it
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // the destructor has begun
  std::string reason_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_failure_ ABSL_GUARDED_BY(mutex_);
  std::thread monitor_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_NCCL_SESSION_H_
