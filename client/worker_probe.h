#ifndef CONCLAVE_CLIENT_WORKER_PROBE_H_
#define CONCLAVE_CLIENT_WORKER_PROBE_H_

// What a worker would run with on this machine: only the worker's binary knows.

#include <string>

#include "absl/status/statusor.h"
#include "client/json_shapes.h"

namespace conclave::client {

// The object that `conclave-worker --probe` prints (docs/cli.md lists its fields).
absl::StatusOr<Json> ProbeWorker(const std::string& worker_binary);

// Lines for people: device, kernels, libraries, and why CUDA is or is not used.
std::string ProbeText(const Json& probe);

// OK when so many CUDA workers can run here together: a GPU for each, and NCCL where they are
// several; else FAILED_PRECONDITION with the numbers or the reason.
absl::Status CheckCudaWorkers(const Json& probe, int workers);

// OK when workers of `device` (cpu or cuda) can run here, else FAILED_PRECONDITION with the reason.
absl::Status CheckDevice(const Json& probe, const std::string& device);

}  // namespace conclave::client

#endif  // CONCLAVE_CLIENT_WORKER_PROBE_H_
