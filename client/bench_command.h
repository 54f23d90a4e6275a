#ifndef CONCLAVE_CLIENT_BENCH_COMMAND_H_
#define CONCLAVE_CLIENT_BENCH_COMMAND_H_

// conclave bench: tokens per second and latencies of a running server under a load of equal
// requests.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddBenchCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_BENCH_COMMAND_H_
