#include "client/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "base/check.h"

namespace conclave::client {

SignalFd::SignalFd(const std::vector<int>& signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_ = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  CONCLAVE_CHECK(fd_ >= 0);
}

SignalFd::~SignalFd() { close(fd_); }

int SignalFd::Take() {
  signalfd_siginfo info;
  const ssize_t size = read(fd_, &info, sizeof(info));
  return size == sizeof(info) ? static_cast<int>(info.ssi_signo) : 0;
}

InterruptGuard::InterruptGuard(std::function<void()> on_interrupt)
    : signals_({SIGINT, SIGTERM}),
      stop_fd_(eventfd(0, EFD_CLOEXEC)),
      on_interrupt_(std::move(on_interrupt)),
      thread_([this] { Watch(); }) {}

InterruptGuard::~InterruptGuard() {
  const uint64_t one = 1;
  CONCLAVE_CHECK(write(stop_fd_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  close(stop_fd_);
}

void InterruptGuard::Watch() {
  bool interrupted = false;
  std::array<pollfd, 2> fds = {{{stop_fd_, POLLIN, 0}, {signals_.fd(), POLLIN, 0}}};
  for (;;) {
    poll(fds.data(), fds.size(), -1);
    while (const int signal = signals_.Take()) {
      if (interrupted) _exit(128 + signal);
      interrupted = true;
      on_interrupt_();
    }
    if (fds[0].revents != 0) return;
  }
}

}  // namespace conclave::client
