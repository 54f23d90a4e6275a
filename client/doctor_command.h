#ifndef CONCLAVE_CLIENT_DOCTOR_COMMAND_H_
#define CONCLAVE_CLIENT_DOCTOR_COMMAND_H_

// conclave doctor: says which kernels would run on this machine, and why.

#include <functional>

#include "base/flags.h"

namespace conclave::client {

// When the subcommand is parsed, `run` becomes what main calls; it returns the exit code.
void AddDoctorCommand(base::FlagSet& app, std::function<int()>* run);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_DOCTOR_COMMAND_H_
