#ifndef CONCLAVE_KERNELS_CUDA_DEVICE_H_
#define CONCLAVE_KERNELS_CUDA_DEVICE_H_

// CUDA errors as statuses, and the device's constants.

#include <cuda_runtime.h>

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

// OK, or INTERNAL "<what>: <CUDA's words>"; cudaErrorMemoryAllocation is RESOURCE_EXHAUSTED. An
// error that stays until the process ends is marked (base/device_lost.h).
absl::Status ToStatus(cudaError_t error, std::string_view what);

// Uninitialized device memory of the current device, its own allocation. RESOURCE_EXHAUSTED with
// the bytes wanted and free.
absl::StatusOr<Buffer> AllocateDevice(int64_t bytes);

// Page-locked host memory.
absl::StatusOr<Buffer> AllocatePinned(int64_t bytes);

// Multiprocessors of the current device, asked for once per process.
int NumMultiprocessors();

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_DEVICE_H_
