#ifndef CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_
#define CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_

// conclave classify: labels a text, or each of its tokens, with a head of a server.

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddClassifyCommand(CLI::App& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_CLASSIFY_COMMAND_H_
