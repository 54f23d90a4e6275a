#ifndef CONCLAVE_CLIENT_SERVE_COMMAND_H_
#define CONCLAVE_CLIENT_SERVE_COMMAND_H_

// conclave serve: a coordinator and its workers as child processes of one command.

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddServeCommand(CLI::App& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_SERVE_COMMAND_H_
