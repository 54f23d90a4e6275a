#ifndef CONCLAVE_COORDINATOR_RENDEZVOUS_H_
#define CONCLAVE_COORDINATOR_RENDEZVOUS_H_

// Small values by name that the ranks of one epoch exchange to connect to each other. A Get of a
// value that is not there yet waits without a thread: its callback runs when the value comes.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace conclave::coordinator {

// Thread-safe. Callbacks run on the thread that settles them, without a lock held.
class Rendezvous {
 public:
  using Callback = std::function<void(absl::StatusOr<std::string> value)>;
  using WaiterId = uint64_t;

  // A communicator of 64 ranks needs some thousands of short values; beyond these bounds the caller
  // is broken.
  static constexpr size_t kMaxValueBytes = 1 << 20;
  static constexpr size_t kMaxTotalBytes = 64 << 20;

  // Forgets the values of the last epoch and begins another.
  void BeginEpoch(uint64_t epoch);
  // Everything of the epoch ends with ABORTED.
  void EndEpoch();

  // ABORTED when `epoch` is not the current one; RESOURCE_EXHAUSTED, with the numbers, beyond the
  // bounds. A second Put replaces the value.
  absl::Status Put(uint64_t epoch, const std::string& key, std::string value);

  // Calls `callback` exactly once: with the value, with ABORTED when the epoch is over, or with
  // CANCELLED by CancelGet. May call it before it returns.
  WaiterId Get(uint64_t epoch, const std::string& key, Callback callback);
  // The caller no longer waits. Nothing happens when the callback was or is being called.
  void CancelGet(WaiterId waiter);

 private:
  struct Waiter {
    std::string key;
    Callback callback;
  };

  std::vector<Callback> TakeWaiters(const std::string& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Change(bool active, uint64_t epoch);
  bool IsCurrent(uint64_t epoch) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;  // guards all below
  bool active_ = false;
  uint64_t epoch_ = 0;
  std::map<std::string, std::string> values_;
  size_t total_bytes_ = 0;
  std::map<WaiterId, Waiter> waiters_;
  WaiterId next_waiter_ = 1;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_RENDEZVOUS_H_
