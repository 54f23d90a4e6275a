#ifndef CONCLAVE_WORKER_PROBE_H_
#define CONCLAVE_WORKER_PROBE_H_

// What this binary could run on this machine, for `conclave-worker --probe` and through it for
// `conclave doctor`.

#include <string>

namespace conclave::worker {

// One JSON object:
//   device, device_name, kernel, instruction_set   the CPU backend
//   mxfp4            "native": multiplied without first expanding the matrix; or "dequantized"
//   fallback_reason  why not native; empty when native
//   threads          hardware threads
//   memory_bytes     of the machine, or of the control group
//   gloo             version of the library
//   cuda             {available, reason}: reason is "no_gpu" or "kernel_not_built"
std::string ProbeJson();

// Why `--device cuda` cannot run here: "no_gpu" or "kernel_not_built".
std::string CudaUnavailableReason();

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_PROBE_H_
