#include "client/exit_code.h"

#include <fmt/format.h>

#include <cstdio>
#include <string>

#include "base/one_line.h"

namespace conclave::client {
namespace {

void PrintError(std::string_view command, std::string_view message) {
  fmt::print(stderr, "conclave{}{}: {}\n", command.empty() ? "" : " ", command,
             base::OneLine(message));
}

}  // namespace

int Fail(std::string_view command, const absl::Status& status) {
  PrintError(command, fmt::format("{}: {}", absl::StatusCodeToString(status.code()),
                                  std::string(status.message())));
  return kExitError;
}

int FailCall(std::string_view command, std::string_view server, const absl::Status& status) {
  // gRPC's own words for a connection that was never made.
  const std::string message(status.message());
  const bool unreachable =
      absl::IsUnavailable(status) && (message.find("failed to connect") != std::string::npos ||
                                      message.find("DNS resolution failed") != std::string::npos);
  const bool lost = absl::IsUnavailable(status) &&
                    (message == "Socket closed" || message.starts_with("Connection reset") ||
                     message.starts_with("recvmsg:"));
  if (lost) {
    PrintError(command,
               fmt::format("UNAVAILABLE: the connection to {} was lost ({})", server, message));
    return kExitError;
  }
  if (!unreachable) return Fail(command, status);
  PrintError(command, fmt::format("UNAVAILABLE: no server answers at {}: start one with 'conclave "
                                  "serve' or correct --server ({})",
                                  server, message));
  return kExitError;
}

int FailUsage(std::string_view command, std::string_view message) {
  const std::string help =
      command.empty() ? "conclave --help" : fmt::format("conclave {} --help", command);
  PrintError(command, fmt::format("{}; see '{}'", base::OneLine(message), help));
  return kExitUsage;
}

}  // namespace conclave::client
