#include "client/process.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "absl/time/clock.h"

namespace conclave::client {
namespace {

absl::Status ErrnoError(const std::string& what) {
  return absl::InternalError(fmt::format("{}: {}", what, strerror(errno)));
}

// All that the child needs, made before fork: after it, only async-signal-safe calls are allowed.
struct ChildSetup {
  std::vector<char*> argv;  // null-terminated
  pid_t parent = 0;
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
};

[[noreturn]] void RunChild(const ChildSetup& setup) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have ended before the line above.
  if (getppid() != setup.parent) _exit(127);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  dup2(setup.stdin_fd, STDIN_FILENO);
  dup2(setup.stdout_fd, STDOUT_FILENO);
  dup2(setup.stderr_fd, STDERR_FILENO);
  execv(setup.argv[0], setup.argv.data());
  _exit(127);
}

// Descriptors to close on every way out.
class Fds {
 public:
  ~Fds() {
    for (const int fd : fds_) close(fd);
  }
  int Add(int fd) {
    if (fd >= 0) fds_.push_back(fd);
    return fd;
  }
  // The caller owns it from now on.
  int Release(int fd) {
    std::erase(fds_, fd);
    return fd;
  }

 private:
  std::vector<int> fds_;
};

// Sets `write_end` for the child; returns the read end, or -1.
int AddPipe(Fds& fds, int* write_end) {
  std::array<int, 2> ends = {-1, -1};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return -1;
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  *write_end = fds.Add(ends[1]);
  return fds.Add(ends[0]);
}

// Reads all that is there; false at the end of the file.
bool Drain(int fd, std::string* out) {
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t size = read(fd, buffer.data(), buffer.size());
    if (size > 0) {
      out->append(buffer.data(), static_cast<size_t>(size));
    } else if (size == 0) {
      return false;
    } else if (errno != EINTR) {
      return errno == EAGAIN;
    }
  }
}

// Collects both pipes until both end; false when `deadline` passes first.
bool Collect(const Process& process, absl::Time deadline, Finished* finished) {
  bool out_open = true;
  bool err_open = true;
  while (out_open || err_open) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    std::array<pollfd, 2> fds = {{{out_open ? process.stdout_fd : -1, POLLIN, 0},
                                  {err_open ? process.stderr_fd : -1, POLLIN, 0}}};
    poll(fds.data(), fds.size(),
         static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 1'000'000)));
    if (fds[0].revents != 0) out_open = Drain(process.stdout_fd, &finished->out);
    if (fds[1].revents != 0) err_open = Drain(process.stderr_fd, &finished->err);
  }
  return true;
}

}  // namespace

absl::StatusOr<Process> Spawn(const SpawnOptions& options) {
  const std::string& program = options.argv.front();
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(fmt::format("cannot run {}: {}", program, strerror(errno)));
  }
  Fds fds;
  ChildSetup setup;
  setup.parent = getpid();
  for (const std::string& argument : options.argv) {
    setup.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  setup.argv.push_back(nullptr);
  setup.stdin_fd = fds.Add(open("/dev/null", O_RDONLY | O_CLOEXEC));
  int log_fd = -1;
  if (!options.log_file.empty()) {
    log_fd =
        fds.Add(open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (log_fd < 0) return ErrnoError("cannot write " + options.log_file);
  }
  Process process;
  setup.stdout_fd = log_fd;
  setup.stderr_fd = log_fd;
  if (log_fd < 0 || options.pipe_stdout) process.stdout_fd = AddPipe(fds, &setup.stdout_fd);
  if (log_fd < 0) process.stderr_fd = AddPipe(fds, &setup.stderr_fd);
  if (setup.stdin_fd < 0 || setup.stdout_fd < 0 || setup.stderr_fd < 0) {
    return ErrnoError("cannot start " + program);
  }
  process.pid = fork();
  if (process.pid < 0) return ErrnoError("cannot start " + program);
  if (process.pid == 0) RunChild(setup);
  // Also here, so that a signal to the group works from now on.
  setpgid(process.pid, process.pid);
  fds.Release(process.stdout_fd);
  fds.Release(process.stderr_fd);
  return process;
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return fmt::format("signal {} ({})", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
  }
  return fmt::format("exit code {}", WEXITSTATUS(wait_status));
}

absl::StatusOr<Finished> RunProcess(const std::vector<std::string>& argv, absl::Duration timeout) {
  const auto process = Spawn({.argv = argv, .log_file = ""});
  if (!process.ok()) return process.status();
  Finished finished;
  const bool in_time = Collect(*process, absl::Now() + timeout, &finished);
  if (!in_time) kill(-process->pid, SIGKILL);
  while (waitpid(process->pid, &finished.wait_status, 0) < 0 && errno == EINTR) {
  }
  close(process->stdout_fd);
  close(process->stderr_fd);
  if (!in_time) {
    return absl::DeadlineExceededError(
        fmt::format("{} did not end within {} s", argv.front(), absl::ToDoubleSeconds(timeout)));
  }
  return finished;
}

}  // namespace conclave::client
