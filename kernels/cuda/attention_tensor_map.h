#ifndef CONCLAVE_KERNELS_CUDA_ATTENTION_TENSOR_MAP_H_
#define CONCLAVE_KERNELS_CUDA_ATTENTION_TENSOR_MAP_H_

// Tensor maps of the copy engine: how a kernel fetches boxes of bf16 arrays into shared memory in
// the 128-byte swizzle that wgmma reads.

#include <cuda.h>

#include <array>
#include <cstdint>

namespace conclave::kernels::cuda {

// An array of `Rank` dimensions, the first contiguous and 64 values wide (one swizzle row).
// `strides` are the bytes from one index to the next of dimensions 1, 2, ...; multiples of 16, as
// is the address. What a box has outside `sizes` arrives as 0.
template <size_t Rank>
struct SwizzledArray {
  const void* data;
  std::array<uint64_t, Rank> sizes;
  std::array<uint64_t, Rank - 1> strides;
  std::array<uint32_t, Rank> box;
};

CUtensorMap MakeTensorMap(const SwizzledArray<2>& array);
CUtensorMap MakeTensorMap(const SwizzledArray<3>& array);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ATTENTION_TENSOR_MAP_H_
