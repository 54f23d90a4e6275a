#ifndef CONCLAVE_CLIENT_PLAN_COMMAND_H_
#define CONCLAVE_CLIENT_PLAN_COMMAND_H_

// conclave plan: shows what each rank would hold, reading only headers.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddPlanCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_PLAN_COMMAND_H_
