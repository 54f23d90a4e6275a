#ifndef CONCLAVE_CLIENT_PROCESS_TESTING_H_
#define CONCLAVE_CLIENT_PROCESS_TESTING_H_

// For tests that start programs.

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace conclave::client {

// Whether the process runs: one that ended and waits to be reaped does not.
bool Alive(pid_t pid);

// Waits until `done`, 20 s at most (longer under sanitizers); whether it came to that.
bool WaitUntil(const std::function<bool()>& done);

// The `conclave` program of this build.
std::string ConclaveBinary();

struct CommandResult {
  int code = -1;  // exit code; -1 when it ended otherwise
  std::string out;
  std::string err;
};

// Runs `conclave` with `arguments` to its end.
CommandResult RunConclave(const std::vector<std::string>& arguments);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_PROCESS_TESTING_H_
