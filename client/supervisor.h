#ifndef CONCLAVE_CLIENT_SUPERVISOR_H_
#define CONCLAVE_CLIENT_SUPERVISOR_H_

// Keeps child processes running, hands on what they print, and leaves none behind.
//
//   Supervisor supervisor(options, &events);
//   supervisor.Start({.name = "worker-0", .argv = {...}});
//   while (!done) supervisor.Step(absl::Milliseconds(100), {wake_fd});
//   supervisor.StopAll();
//
// Not thread-safe: all calls, and the calls to Events, are on one thread, the process's main one.

#include <csignal>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/backoff.h"
#include "client/process.h"

namespace conclave::client {

struct ChildSpec {
  std::string name;               // for events
  std::vector<std::string> argv;  // argv[0] is the path of the program
  std::string log_file;           // empty: lines of both streams become events
  bool lines_of_stdout = true;    // with a log file: those of stdout still do
};

struct SupervisorOptions {
  bool restart = true;
  BackoffOptions backoff;
  std::vector<int> stop_signals = {SIGTERM};  // of StopAll
  // From these to SIGKILL.
  absl::Duration stop_limit = absl::Seconds(10);
};

struct Exit {
  int child = 0;
  int wait_status = 0;
  int failures = 0;  // in a row
  // Until it is started again; infinite when it is not.
  absl::Duration restart_in;
};

class Supervisor {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    // A line without its newline.
    virtual void OnLine(int child, bool is_stdout, const std::string& line) = 0;
    virtual void OnExit(const Exit& exit) = 0;
  };

  // `events` is not owned.
  Supervisor(const SupervisorOptions& options, Events* events);
  // StopAll, if that was not done.
  ~Supervisor();

  // Starts a child and returns its number, counted from 0.
  absl::StatusOr<int> Start(ChildSpec spec);

  // SIGTERM to one child, which is not started again; Step reaps it.
  void StopChild(int child);

  // Changes what the child is started with next time.
  void set_argv(int child, std::vector<std::string> argv);

  // Hands on output, reaps, and restarts what is due. Waits up to `wait` for something to happen or
  // for one of `wake_fds` to become readable.
  void Step(absl::Duration wait, std::span<const int> wake_fds = {});

  // The stop signals to all, SIGKILL to those still there after the limit, or as soon as one of
  // `hurry_fds` is readable; returns when all are reaped. Nothing is restarted any more.
  void StopAll(std::span<const int> hurry_fds = {});

  const std::string& name(int child) const;
  // -1 while it does not run.
  pid_t pid(int child) const;
  bool AnyRunning() const;

 private:
  struct Child;
  absl::Status Launch(Child& child);
  void WaitForEvent(absl::Duration wait, std::span<const int> wake_fds) const;
  void ReadOutput(Child& child);
  void Reap();
  void Ended(Child& child, int wait_status);
  void RestartDue();
  void Signal(int signal) const;

  const SupervisorOptions options_;
  Events* const events_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Child>> children_;
};

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SUPERVISOR_H_
