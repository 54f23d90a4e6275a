#ifndef CONCLAVE_CLIENT_PROCESS_H_
#define CONCLAVE_CLIENT_PROCESS_H_

// Child processes that never outlive this one.

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace conclave::client {

// A program that was started. Its pipes are non-blocking and close-on-exec.
struct Process {
  pid_t pid = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
};

struct SpawnOptions {
  std::vector<std::string> argv;  // argv[0] is the path of the program
  // Appended to, in place of a pipe, by both streams that are not piped. Empty: none.
  std::string log_file;
  // With a log file: keep stdout a pipe all the same.
  bool pipe_stdout = true;
};

// Starts a program: a process group of its own (the terminal's Ctrl-C is ours to hand on), stdin
// empty, no signal blocked. The kernel kills it when the calling *thread* ends, so call this from
// one that lives as long as the process. The caller reaps it and closes the pipes.
absl::StatusOr<Process> Spawn(const SpawnOptions& options);

// "exit code 3", "signal 9 (Killed)": what waitpid said.
std::string DescribeExit(int wait_status);

struct Finished {
  int wait_status = 0;
  std::string out;
  std::string err;
};

// Runs a program to its end; kills it past `timeout` (DEADLINE_EXCEEDED).
absl::StatusOr<Finished> RunProcess(const std::vector<std::string>& argv, absl::Duration timeout);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_PROCESS_H_
