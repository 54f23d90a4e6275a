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
//   cuda             {available, reason, message, devices}: reason is empty, "no_gpu",
//                    "kernel_not_built" or "arch_unsupported", message the same as a sentence,
//                    devices what the driver shows, nccl the version of NCCL
//                    or why it is not there (CUDA builds); with a device also device_name,
//                    compute_capability, memory_bytes and kernel, of `cuda_device`
std::string ProbeJson(int cuda_device);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_PROBE_H_
