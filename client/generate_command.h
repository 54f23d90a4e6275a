#ifndef CONCLAVE_CLIENT_GENERATE_COMMAND_H_
#define CONCLAVE_CLIENT_GENERATE_COMMAND_H_

// conclave generate: streams one continuation from a server.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddGenerateCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_GENERATE_COMMAND_H_
