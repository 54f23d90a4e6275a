#ifndef CONCLAVE_KERNELS_CUDA_ROUTER_H_
#define CONCLAVE_KERNELS_CUDA_ROUTER_H_

// The router: which experts a row goes to, and with what weights.
//
//   rows        launches
//   1..64       1: FusedRoute, if the experts are at most 128
//   more        3: ResidualNormRows (norm.h), a dense product, ChooseExperts
//
// The choice: the k largest logits in falling order, ties to the lower id, a logit that is not a
// number last. `forced` i32 [rows, k] in device memory replaces a choice where it is not negative;
// null: none. Weights are the softmax over the logits of what was chosen. A row whose run_of_row is
// negative (padding of a recorded step) goes to no expert: ids -1, weights 0; null: all rows count.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace conclave::kernels::cuda {

inline constexpr int kFusedRouteRows = 64;
inline constexpr int kFusedRouteExperts = 128;
// Limits of every path.
inline constexpr int kMaxRoutedExperts = 1024;
inline constexpr int kMaxRouteChoices = 32;

struct RouteArguments {
  const float* partial = nullptr;  // [rows, hidden]
  __nv_bfloat16* x = nullptr;      // [rows, hidden] += partial, rounded once
  const __nv_bfloat16* norm = nullptr;
  float epsilon = 0;
  const __nv_bfloat16* weight = nullptr;  // [experts, hidden]
  const __nv_bfloat16* bias = nullptr;    // [experts] or null
  const int32_t* forced = nullptr;        // device memory
  const int32_t* run_of_row = nullptr;    // [rows] device memory
  int rows = 0;
  int64_t hidden = 0;
  int experts = 0;
  int k = 0;
  __nv_bfloat16* normed = nullptr;  // [rows, hidden] RMSNorm(x)
  int32_t* expert_ids = nullptr;    // [rows, k]
  float* weights = nullptr;         // [rows, k]
};

// Whether FusedRoute takes these sizes: hidden a multiple of 32 that fits shared memory, at most
// kFusedRouteRows rows and kFusedRouteExperts experts, 16-byte aligned pointers.
bool CanFuseRoute(const RouteArguments& arguments);

// The router's weight, bias and the norm's weight must have been complete before the kernel that
// precedes this one on the stream.
void FusedRoute(const RouteArguments& arguments, cudaStream_t stream);

// Of logits f32 [rows, experts].
void ChooseExperts(const float* logits, const int32_t* forced, const int32_t* run_of_row, int rows,
                   int experts, int k, int32_t* expert_ids, float* weights, cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_ROUTER_H_
