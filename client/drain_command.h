#ifndef CONCLAVE_CLIENT_DRAIN_COMMAND_H_
#define CONCLAVE_CLIENT_DRAIN_COMMAND_H_

// conclave status: shows the group of workers behind a server.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddDrainCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_DRAIN_COMMAND_H_
