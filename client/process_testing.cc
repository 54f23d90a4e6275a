#include "client/process_testing.h"

#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "client/process.h"

namespace conclave::client {

bool Alive(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(stat, text)) return false;
  // "PID (NAME) STATE ...": the name may hold anything.
  const size_t end = text.rfind(") ");
  return end != std::string::npos && text[end + 2] != 'Z' && text[end + 2] != 'X';
}

bool WaitUntil(const std::function<bool()>& done) {
  const absl::Time limit = absl::Now() + base::TimeScale() * absl::Seconds(20);
  // `done` may not be asked again once it was true: it may reap.
  while (!done()) {
    if (absl::Now() >= limit) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

std::string ConclaveBinary() { return std::filesystem::absolute("client/conclave").string(); }

CommandResult RunConclave(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {ConclaveBinary()};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const auto finished = RunProcess(argv, base::TimeScale() * absl::Seconds(60));
  if (!finished.ok()) return {.code = -1, .out = "", .err = finished.status().ToString()};
  const int status = finished->wait_status;
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, finished->out, finished->err};
}

}  // namespace conclave::client
