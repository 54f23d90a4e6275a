#ifndef CONCLAVE_CLIENT_SERVER_FLAGS_H_
#define CONCLAVE_CLIENT_SERVER_FLAGS_H_

// Where the server is and how long to wait for it: the same for every subcommand that calls one.

#include <string>

#include "base/flags.h"
#include "client/client.h"

namespace conclave::client {

// Where serve listens and the other subcommands look when nothing else is said.
inline constexpr char kDefaultServer[] = "127.0.0.1:50051";

struct ServerFlags {
  std::string server = kDefaultServer;
  double timeout_seconds = 0;  // 0: no limit

  CallOptions call_options() const;
};

// `flags` must outlive the parse.
void AddServerFlags(base::FlagSet& command, ServerFlags* flags);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVER_FLAGS_H_
