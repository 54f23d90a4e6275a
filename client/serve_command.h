#ifndef CONCLAVE_CLIENT_SERVE_COMMAND_H_
#define CONCLAVE_CLIENT_SERVE_COMMAND_H_

// conclave serve: a coordinator and its workers as child processes of one command.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddServeCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_COMMAND_H_
