// One thread for 16 bytes of the result. It loads the same place of several parts before it adds
// them, so that the loads of few long parts overlap; the additions stay in the order of the parts.

#include <cuda_bf16.h>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ordered_sum.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLoads = 4;  // parts in flight

// `Vector` is 16 bytes of values of T, or one value where those cannot be read at once.
template <typename T, typename Vector>
struct Wide {
  static constexpr int kValues = static_cast<int>(sizeof(Vector) / sizeof(T));
};

__device__ void AddTo(float (&sum)[1], float value) { sum[0] += value; }
__device__ void AddTo(float (&sum)[1], __nv_bfloat16 value) { sum[0] += ToFloat(value); }
__device__ void AddTo(float (&sum)[4], const float4& value) {
  const float add[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += add[i];
}
__device__ void AddTo(float (&sum)[kVec], const uint4& value) {
  float add[kVec];
  Unpack(value, add);
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] += add[i];
}

__device__ void StoreSum(const float (&sum)[1], float* to) { *to = sum[0]; }
__device__ void StoreSum(const float (&sum)[1], __nv_bfloat16* to) { Store(sum[0], to); }
__device__ void StoreSum(const float (&sum)[4], float4* to) {
  *to = {sum[0], sum[1], sum[2], sum[3]};
}
__device__ void StoreSum(const float (&sum)[kVec], uint4* to) { *to = Pack(sum); }

// The element at `index` of each part, added up. -0 + part 0 is part 0, whatever its sign.
template <int kValues, typename Element>
__device__ void SumAt(const PartsToSum& p, int64_t index, float (&sum)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum[i] = -0.0f;
  for (int first = 0; first < p.count; first += kLoads) {
    Element loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int part = first + i;
      if (part >= p.count) break;
      const void* from =
          part == p.own ? p.own_part : static_cast<const std::byte*>(p.parts) + part * p.stride;
      loaded[i] = static_cast<const Element*>(from)[index];
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (first + i < p.count) AddTo(sum, loaded[i]);
    }
  }
}

template <typename T, typename Vector>
__global__ void __launch_bounds__(kThreads)
    SumKernel(const __grid_constant__ PartsToSum p, int64_t values, T* out) {
  PdlTrigger();
  PdlWait();
  constexpr int kValues = Wide<T, Vector>::kValues;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if ((index + 1) * kValues <= values) {
    float sum[kValues];
    SumAt<kValues, Vector>(p, index, sum);
    StoreSum(sum, reinterpret_cast<Vector*>(out) + index);
    return;
  }
  for (int64_t i = index * kValues; i < values; ++i) {
    float sum[1];
    SumAt<1, T>(p, i, sum);
    StoreSum(sum, out + i);
  }
}

bool Aligned(const PartsToSum& p, const void* out) {
  constexpr uintptr_t kVector = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p.parts) | static_cast<uintptr_t>(p.stride) |
                         reinterpret_cast<uintptr_t>(p.own_part) | reinterpret_cast<uintptr_t>(out);
  return bits % kVector == 0;
}

template <typename T, typename Vector>
void Launch(const PartsToSum& parts, int64_t values, void* out, cudaStream_t stream) {
  constexpr int64_t kBlockValues = int64_t{kThreads} * Wide<T, Vector>::kValues;
  const auto blocks = static_cast<unsigned>((values + kBlockValues - 1) / kBlockValues);
  LaunchDependent(SumKernel<T, Vector>, {dim3(blocks), dim3(kThreads)}, stream, parts, values,
                  static_cast<T*>(out));
}

}  // namespace

void OrderedSum(DType dtype, const PartsToSum& parts, int64_t values, void* out,
                cudaStream_t stream) {
  if (values == 0) return;
  const bool aligned = Aligned(parts, out);
  if (dtype == DType::kF32) {
    aligned ? Launch<float, float4>(parts, values, out, stream)
            : Launch<float, float>(parts, values, out, stream);
  } else {
    aligned ? Launch<__nv_bfloat16, uint4>(parts, values, out, stream)
            : Launch<__nv_bfloat16, __nv_bfloat16>(parts, values, out, stream);
  }
}

}  // namespace conclave::kernels::cuda
