#include "kernels/cuda/attention_tensor_map.h"

#include <cuda_runtime.h>

#include "base/check.h"

namespace conclave::kernels::cuda {
namespace {

// The driver's function, found at run time: no binary links libcuda.
using EncodeFunction = decltype(&cuTensorMapEncodeTiled);
EncodeFunction Encode() {
  static const EncodeFunction function = [] {
    constexpr unsigned kVersion = 12000;
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               kVersion, cudaEnableDefault, &found);
    CONCLAVE_CHECK(error == cudaSuccess && found == cudaDriverEntryPointSuccess);
    return reinterpret_cast<EncodeFunction>(entry);
  }();
  return function;
}

template <size_t Rank>
CUtensorMap Make(const SwizzledArray<Rank>& array) {
  std::array<uint32_t, Rank> element_strides;
  element_strides.fill(1);
  CUtensorMap map;
  const CUresult result =
      Encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Rank, const_cast<void*>(array.data),
               array.sizes.data(), array.strides.data(), array.box.data(), element_strides.data(),
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CONCLAVE_CHECK(result == CUDA_SUCCESS);
  return map;
}

}  // namespace

CUtensorMap MakeTensorMap(const SwizzledArray<2>& array) { return Make(array); }
CUtensorMap MakeTensorMap(const SwizzledArray<3>& array) { return Make(array); }

}  // namespace conclave::kernels::cuda
