#ifndef CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_
#define CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_

// conclave classify: labels a text, or each of its tokens, with a head of a server.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddClassifyCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_
