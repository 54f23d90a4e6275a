#ifndef CONCLAVE_BASE_MAILBOX_H_
#define CONCLAVE_BASE_MAILBOX_H_

// Messages from many threads to the one thread that owns a piece of state.

#include <deque>
#include <optional>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace conclave::base {

template <typename Message>
class Mailbox {
 public:
  // Any thread. Dropped (false) after Close.
  bool Post(Message message) {
    absl::MutexLock lock(&mutex_);
    if (closed_) return false;
    queue_.push_back(std::move(message));
    return true;
  }

  // The owner. Waits until a message is there, the mailbox is closed and empty, or `timeout`.
  std::optional<Message> Take(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &Mailbox::Ready), timeout);
    if (queue_.empty()) return std::nullopt;
    Message message = std::move(queue_.front());
    queue_.pop_front();
    return message;
  }

  // Messages that wait now.
  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return queue_.size();
  }

  // Any thread. What was posted before is still delivered.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_ && queue_.empty();
  }

 private:
  bool Ready() const { return closed_ || !queue_.empty(); }

  mutable absl::Mutex mutex_;  // guards both fields below
  std::deque<Message> queue_;
  bool closed_ = false;
};

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_MAILBOX_H_
