#include "client/server_flags.h"

namespace conclave::client {

CallOptions ServerFlags::call_options() const {
  return {.timeout =
              timeout_seconds > 0 ? absl::Seconds(timeout_seconds) : absl::InfiniteDuration()};
}

void AddServerFlags(CLI::App& command, ServerFlags* flags) {
  command.add_option("--server", flags->server, "Address of the server")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command.add_option("--timeout", flags->timeout_seconds, "Give up after this long [no limit]")
      ->type_name("SECONDS")
      ->check(CLI::NonNegativeNumber);
}

}  // namespace conclave::client
