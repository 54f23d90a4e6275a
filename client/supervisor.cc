#include "client/supervisor.h"

#include <errno.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/clock.h"

namespace conclave::client {
namespace {

// A child that prints without ever ending a line must not make us grow.
constexpr size_t kMaxLine = 64 * 1024;

// One piped stream of a child, cut into lines.
struct Stream {
  int fd = -1;
  std::string partial;

  void Close() {
    if (fd >= 0) close(fd);
    fd = -1;
  }

  template <typename OnLine>
  void Read(OnLine on_line) {
    std::array<char, 16384> buffer;
    while (fd >= 0) {
      const ssize_t size = read(fd, buffer.data(), buffer.size());
      if (size > 0) {
        Append({buffer.data(), static_cast<size_t>(size)}, on_line);
      } else if (size == 0 || (errno != EAGAIN && errno != EINTR)) {
        Close();
      } else if (errno == EAGAIN) {
        return;
      }
    }
  }

  template <typename OnLine>
  void Flush(OnLine on_line) {
    if (!partial.empty()) on_line(std::exchange(partial, {}));
  }

 private:
  template <typename OnLine>
  void Append(std::string_view bytes, OnLine on_line) {
    for (const char c : bytes) {
      if (c == '\n' || partial.size() >= kMaxLine) on_line(std::exchange(partial, {}));
      if (c != '\n') partial += c;
    }
  }
};

}  // namespace

struct Supervisor::Child {
  Child(int child, ChildSpec child_spec, const BackoffOptions& options)
      : number(child), spec(std::move(child_spec)), backoff(options) {}

  int number;
  ChildSpec spec;
  Backoff backoff;
  pid_t pid = -1;
  Stream out, err;
  absl::Time started;
  absl::Time restart_at = absl::InfiniteFuture();
  bool stopped = false;  // by StopChild
};

Supervisor::Supervisor(const SupervisorOptions& options, Events* events)
    : options_(options), events_(events) {}

Supervisor::~Supervisor() { StopAll(); }

absl::StatusOr<int> Supervisor::Start(ChildSpec spec) {
  const int number = static_cast<int>(children_.size());
  auto child = std::make_unique<Child>(number, std::move(spec), options_.backoff);
  if (auto status = Launch(*child); !status.ok()) return status;
  children_.push_back(std::move(child));
  return number;
}

void Supervisor::StopChild(int child) {
  children_[child]->stopped = true;
  children_[child]->restart_at = absl::InfiniteFuture();
  if (children_[child]->pid > 0) kill(-children_[child]->pid, SIGTERM);
}

void Supervisor::set_argv(int child, std::vector<std::string> argv) {
  children_[child]->spec.argv = std::move(argv);
}

absl::Status Supervisor::Launch(Child& child) {
  const auto process = Spawn({.argv = child.spec.argv,
                              .log_file = child.spec.log_file,
                              .pipe_stdout = child.spec.lines_of_stdout});
  if (!process.ok()) return process.status();
  child.pid = process->pid;
  child.out.fd = process->stdout_fd;
  child.err.fd = process->stderr_fd;
  child.started = base::SteadyNow();
  child.restart_at = absl::InfiniteFuture();
  return absl::OkStatus();
}

void Supervisor::Step(absl::Duration wait, std::span<const int> wake_fds) {
  WaitForEvent(wait, wake_fds);
  for (auto& child : children_) ReadOutput(*child);
  Reap();
  if (!stopping_) RestartDue();
}

void Supervisor::WaitForEvent(absl::Duration wait, std::span<const int> wake_fds) const {
  const absl::Time now = base::SteadyNow();
  std::vector<pollfd> fds;
  for (const int fd : wake_fds) fds.push_back({fd, POLLIN, 0});
  for (const auto& child : children_) {
    for (const Stream* stream : {&child->out, &child->err}) {
      if (stream->fd >= 0) fds.push_back({stream->fd, POLLIN, 0});
    }
    wait = std::min(wait, std::max(child->restart_at - now, absl::ZeroDuration()));
  }
  poll(fds.data(), fds.size(), static_cast<int>(std::ceil(absl::ToDoubleMilliseconds(wait))));
}

void Supervisor::ReadOutput(Child& child) {
  child.out.Read([&](const std::string& line) { events_->OnLine(child.number, true, line); });
  child.err.Read([&](const std::string& line) { events_->OnLine(child.number, false, line); });
}

void Supervisor::Reap() {
  for (auto& child : children_) {
    siginfo_t info = {};
    if (child->pid < 0 ||
        waitid(P_PID, static_cast<id_t>(child->pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
        info.si_pid != child->pid) {
      continue;
    }
    // What it left behind, before the number of its group can be anybody else's.
    kill(-child->pid, SIGKILL);
    int wait_status = 0;
    waitpid(child->pid, &wait_status, 0);
    Ended(*child, wait_status);
  }
}

void Supervisor::Ended(Child& child, int wait_status) {
  // Processes that it started itself may hold the pipes open: what is there now is all we take.
  ReadOutput(child);
  child.out.Flush([&](const std::string& line) { events_->OnLine(child.number, true, line); });
  child.err.Flush([&](const std::string& line) { events_->OnLine(child.number, false, line); });
  child.out.Close();
  child.err.Close();
  child.pid = -1;
  Exit exit{.child = child.number,
            .wait_status = wait_status,
            .failures = 0,
            .restart_in = absl::InfiniteDuration()};
  const absl::Time now = base::SteadyNow();
  const absl::Duration delay = child.backoff.Next(now - child.started);
  exit.failures = child.backoff.failures();
  if (options_.restart && !stopping_ && !child.stopped) {
    exit.restart_in = delay;
    child.restart_at = now + delay;
  }
  events_->OnExit(exit);
}

void Supervisor::RestartDue() {
  const absl::Time now = base::SteadyNow();
  for (auto& child : children_) {
    if (child->restart_at > now) continue;
    if (const absl::Status status = Launch(*child); !status.ok()) {
      events_->OnLine(child->number, false, std::string(status.message()));
      child->restart_at = now + child->backoff.Next(absl::ZeroDuration());
    }
  }
}

void Supervisor::Signal(int signal) const {
  for (const auto& child : children_) {
    if (child->pid > 0) kill(-child->pid, signal);
  }
}

void Supervisor::StopAll(std::span<const int> hurry_fds) {
  stopping_ = true;
  for (auto& child : children_) child->restart_at = absl::InfiniteFuture();
  for (const int signal : options_.stop_signals) Signal(signal);
  // One that was stopped (SIGSTOP) would not see the signal above.
  Signal(SIGCONT);
  const absl::Time limit = base::SteadyNow() + options_.stop_limit;
  while (AnyRunning()) {
    std::vector<pollfd> hurry;
    for (const int fd : hurry_fds) hurry.push_back({fd, POLLIN, 0});
    const bool hurried = poll(hurry.data(), hurry.size(), 0) > 0;
    if (hurried || base::SteadyNow() >= limit) Signal(SIGKILL);
    Step(absl::Milliseconds(20));
  }
}

const std::string& Supervisor::name(int child) const { return children_[child]->spec.name; }

pid_t Supervisor::pid(int child) const { return children_[child]->pid; }

bool Supervisor::AnyRunning() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const auto& child) { return child->pid > 0; });
}

}  // namespace conclave::client
