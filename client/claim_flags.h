#ifndef CONCLAVE_CLIENT_CLAIM_FLAGS_H_
#define CONCLAVE_CLIENT_CLAIM_FLAGS_H_

// How much of the service a request claims: the same flags for every subcommand whose request waits
// in the server's queue.

#include <string>

#include "base/flags.h"

namespace conclave::client {

struct ClaimFlags {
  int priority = 0;
  std::string user;
};

// `flags` must outlive the parse.
inline void AddClaimFlags(base::FlagSet& command, ClaimFlags* flags) {
  command.Add("--priority", &flags->priority, "The higher is served first [0]");
  command.Add("--user", &flags->user, "Whose share of the service this takes [this host's]")
      .Type("NAME");
}

// `Request` is a message with the fields of GenerateRequest. Ranges are for the server.
template <typename Request>
void SetClaim(const ClaimFlags& flags, Request& request) {
  request.set_priority(flags.priority);
  request.set_user(flags.user);
}

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CLAIM_FLAGS_H_
