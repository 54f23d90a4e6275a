#ifndef CONCLAVE_CLIENT_SERVER_FLAGS_H_
#define CONCLAVE_CLIENT_SERVER_FLAGS_H_

// Where the server is and how long to wait for it: the same for every subcommand that calls one.

#include <string>

#include "absl/status/statusor.h"
#include "base/credentials.h"
#include "base/flags.h"
#include "client/client.h"

namespace conclave::client {

// Where serve listens and the other subcommands look when nothing else is said.
inline constexpr char kDefaultServer[] = "127.0.0.1:50051";

// The environment variable with the API key; children of serve do not get it.
inline constexpr char kApiKeyVariable[] = "CONCLAVE_API_KEY";

struct ServerFlags {
  std::string server = kDefaultServer;
  double timeout_seconds = 0;  // 0: no limit
  bool tls = false;            // also when one of the files below is given
  base::TlsFiles tls_files = {};
  std::string api_key_file = {};  // empty: $CONCLAVE_API_KEY, if that is set

  CallOptions call_options() const;
  // Reads the files. `retry` as for Client.
  absl::StatusOr<Client> Connect(bool retry = true) const;
};

// `flags` must outlive the parse.
void AddServerFlags(base::FlagSet& command, ServerFlags* flags);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVER_FLAGS_H_
