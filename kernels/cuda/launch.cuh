#ifndef CONCLAVE_KERNELS_CUDA_LAUNCH_CUH_
#define CONCLAVE_KERNELS_CUDA_LAUNCH_CUH_

// Programmatic dependent launch: a kernel may start while the one before it on the stream ends, so
// that its launch and its first weight loads hide in the other's tail.
//
// The rule for every kernel started by LaunchDependent: until PdlWait() it reads nothing but
// weights and its parameters, and writes nothing but its own shared memory; some thread of every
// block calls PdlWait(), and whoever reads or writes activations does so after it.

#include <cuda_runtime.h>

#include <utility>

namespace conclave::kernels::cuda {

// Waits until the kernels before this one are complete and their writes visible.
__device__ inline void PdlWait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel start as soon as it finds room.
__device__ inline void PdlTrigger() { asm volatile("griddepcontrol.launch_dependents;"); }

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks of a cluster along x
};

// A failure is left for cudaGetLastError.
template <typename... Parameters, typename... Arguments>
void LaunchDependent(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                     Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = shape.cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_LAUNCH_CUH_
