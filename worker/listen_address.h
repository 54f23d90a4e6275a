#ifndef CONCLAVE_WORKER_LISTEN_ADDRESS_H_
#define CONCLAVE_WORKER_LISTEN_ADDRESS_H_

// Which address a worker's peers reach it at: never a guess from the host name.

#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"

namespace conclave::worker {

// The numeric address to listen on: the first usable one of `interface`, or `hostname` (a name or a
// number), which must belong to this machine and, when both are given, to the interface.
// INVALID_ARGUMENT says what the machine has instead.
absl::StatusOr<std::string> ResolveListenAddress(const std::string& interface,
                                                 const std::string& hostname);

// "" for a family that is not IP and for link-local IPv6, which needs a scope.
std::string NumericAddress(const sockaddr* address);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_LISTEN_ADDRESS_H_
