#include "client/server_flags.h"

namespace conclave::client {

CallOptions ServerFlags::call_options() const {
  return {.timeout =
              timeout_seconds > 0 ? absl::Seconds(timeout_seconds) : absl::InfiniteDuration()};
}

void AddServerFlags(base::FlagSet& command, ServerFlags* flags) {
  command.Add("--server", &flags->server, "Address of the server").Type("HOST:PORT").ShowDefault();
  command.Add("--timeout", &flags->timeout_seconds, "Give up after this long [no limit]")
      .Type("SECONDS")
      .NonNegative();
}

}  // namespace conclave::client
