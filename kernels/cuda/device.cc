#include "kernels/cuda/device.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/device_lost.h"
#include "base/status_macros.h"

namespace conclave::kernels::cuda {
namespace {

// What the CUDA runtime documents as "the process must be terminated and relaunched".
bool StaysUntilTheProcessEnds(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status ToStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  if (StaysUntilTheProcessEnds(error)) return base::DeviceLostError(message);
  return absl::InternalError(message);
}

absl::StatusOr<Buffer> AllocateDevice(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, std::max<int64_t>(bytes, 1));
  if (error == cudaSuccess) {
    return Buffer{std::shared_ptr<void>(memory, [](void* p) { cudaFree(p); }), bytes};
  }
  cudaGetLastError();  // an allocation that failed leaves the device usable
  if (error != cudaErrorMemoryAllocation) return ToStatus(error, "cudaMalloc");
  size_t free = 0;
  size_t total = 0;
  cudaMemGetInfo(&free, &total);
  return absl::ResourceExhaustedError(
      fmt::format("cannot allocate {} bytes on the GPU, {} of {} are free", bytes, free, total));
}

absl::StatusOr<Buffer> AllocatePinned(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, std::max<int64_t>(bytes, 1));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return ToStatus(error, fmt::format("allocating {} bytes of page-locked host memory", bytes));
  }
  return Buffer{std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); }), bytes};
}

int NumMultiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
    return value;
  }();
  return count;
}

}  // namespace conclave::kernels::cuda
