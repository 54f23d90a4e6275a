// Whether the kernels run on this machine's GPU.

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "kernels/ops.h"

namespace conclave::kernels {

CudaProbe ProbeCuda(int device) {
  CudaProbe probe;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || device < 0 || device >= count) {
    cudaGetLastError();
    probe.reason = "no_gpu";
    probe.message = error != cudaSuccess
                        ? fmt::format("no CUDA device: {}", cudaGetErrorString(error))
                        : fmt::format("there is no CUDA device {}, of {}", device, count);
    return probe;
  }
  cudaDeviceProp properties;
  if (const cudaError_t failed = cudaGetDeviceProperties(&properties, device);
      failed != cudaSuccess) {
    cudaGetLastError();
    probe.reason = "no_gpu";
    probe.message = fmt::format("CUDA device {}: {}", device, cudaGetErrorString(failed));
    return probe;
  }
  probe.compute_capability = fmt::format("{}.{}", properties.major, properties.minor);
  probe.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  // sm_90a code runs on 9.0 alone, on no later device either.
  if (properties.major != 9 || properties.minor != 0) {
    probe.reason = "arch_unsupported";
    probe.message = fmt::format("{} has compute capability {}, the kernels are built for 9.0",
                                properties.name, probe.compute_capability);
  }
  return probe;
}

KernelInfo DescribeCuda(int device) {
  KernelInfo info{.device = "cuda",
                  .device_name = "",
                  .kernel = "cuda_mxfp4_sm90a",
                  .instruction_set = "sm_90a"};
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
    info.device_name = properties.name;
  } else {
    cudaGetLastError();
  }
  return info;
}

}  // namespace conclave::kernels
