#ifndef CONCLAVE_BASE_EXECUTOR_H_
#define CONCLAVE_BASE_EXECUTOR_H_

// One background thread that runs what it is given, in order. Keeps slow work (building replies,
// socket writes) off a thread that must not wait.

#include <functional>
#include <thread>

#include "base/mailbox.h"

namespace conclave::base {

class Executor {
 public:
  Executor()
      : thread_([this] {
          while (auto task = tasks_.Take(absl::InfiniteDuration())) (*task)();
        }) {}
  // Runs what was posted before, then ends the thread.
  ~Executor() {
    tasks_.Close();
    thread_.join();
  }
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Any thread.
  void Post(std::function<void()> task) { tasks_.Post(std::move(task)); }

 private:
  Mailbox<std::function<void()>> tasks_;
  std::thread thread_;  // last: starts when the mailbox exists
};

}  // namespace conclave::base

#endif  // CONCLAVE_BASE_EXECUTOR_H_
