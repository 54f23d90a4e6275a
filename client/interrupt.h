#ifndef CONCLAVE_CLIENT_INTERRUPT_H_
#define CONCLAVE_CLIENT_INTERRUPT_H_

// Signals as file descriptors.
//
//   SignalFd signals({SIGINT, SIGTERM});       // before any other thread starts
//   ... poll(signals.fd()) ...  while (int signal = signals.Take()) ...

#include <functional>
#include <thread>
#include <vector>

namespace conclave::client {

// Blocks `signals` in this thread, and so in those it starts later, for good; they arrive here
// instead.
class SignalFd {
 public:
  explicit SignalFd(const std::vector<int>& signals);
  ~SignalFd();
  SignalFd(const SignalFd&) = delete;
  SignalFd& operator=(const SignalFd&) = delete;

  int fd() const { return fd_; }
  // The next signal that arrived, or 0. Does not wait.
  int Take();

 private:
  int fd_;
};

// Calls `on_interrupt` on a thread of its own, once, when SIGINT or SIGTERM arrives. A second
// SIGINT or SIGTERM ends the process as if nothing had been caught.
class InterruptGuard {
 public:
  explicit InterruptGuard(std::function<void()> on_interrupt);
  ~InterruptGuard();

 private:
  void Watch();

  SignalFd signals_;
  int stop_fd_;  // eventfd: readable when the guard ends
  std::function<void()> on_interrupt_;
  std::thread thread_;  // last: starts when the rest exists
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_INTERRUPT_H_
