#ifndef CONCLAVE_TESTS_GPU_DEVICE_OPS_H_
#define CONCLAVE_TESTS_GPU_DEVICE_OPS_H_

// The backend for a device. CUDA is there in builds on machines with its toolkit.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"

namespace conclave::gpu {

enum class Device { kCpu, kCuda };

struct DeviceOptions {
  Device device = Device::kCpu;
  int threads = 1;  // of the CPU backend; that load weights to the GPU
  int max_sequences = 1;
  int max_step_tokens = 1;
  int max_blocks = 1;        // of all sequences together, of each kind
  bool record_steps = true;  // as of CudaOptions
};

// Why GPU tests cannot run here; empty when they can.
std::string WhyNoGpu();

// Ops of a world of one rank. UNIMPLEMENTED for CUDA in a build without it.
absl::StatusOr<std::unique_ptr<kernels::Ops>> MakeDeviceOps(const model::Config& config,
                                                            const DeviceOptions& options);

}  // namespace conclave::gpu

#endif  // CONCLAVE_TESTS_GPU_DEVICE_OPS_H_
