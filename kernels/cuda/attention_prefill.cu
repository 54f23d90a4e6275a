// Prefill: a tile of token rows of one run, with the query heads of one KV head side by side: row m
// of the tile is head m % group of token m / group, so that the tile is full at 24 tokens already.
//
// A persistent block on every multiprocessor: one warp fetches (items, queries, keys and values,
// one KV block of one head per copy), three warpgroups of 64 rows each multiply. Per step of 128
// keys
//   S [64, 128] = Q K^T           both in shared memory, the result in registers
//   P = exp2(c S - c m)           while the previous step's O += P V runs
//   O [64, 64] += P V             P in registers
// The warpgroups drift apart, and one's softmax runs under the others' products too. Items come
// from a ticket, longest first.

#include <algorithm>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_prefill_consumer.cuh"
#include "kernels/cuda/attention_prefill_producer.cuh"
#include "kernels/cuda/attention_tensor_map.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace prefill {
namespace {

__device__ void InitBarriers(PrefillShared& shared) {
  constexpr int kConsumerWarps = kConsumerThreads / 32;
  for (int i = 0; i < 2; ++i) {
    BarrierInit(&shared.work_full[i], 1);
    BarrierInit(&shared.work_empty[i], kConsumerThreads);
    BarrierInit(&shared.queries_full[i], 1);
    BarrierInit(&shared.queries_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < kStages; ++i) {
    BarrierInit(&shared.keys_full[i], 1);
    BarrierInit(&shared.values_full[i], 1);
    BarrierInit(&shared.empty[i], kConsumerWarps);
  }
  BarrierInitFence();
}

__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ PrefillParams p) {
  extern __shared__ char raw[];
  auto& shared = *reinterpret_cast<PrefillShared*>(raw + (1024 - SharedAddress(raw) % 1024) % 1024);
  PdlTrigger();
  if (threadIdx.x == 0) InitBarriers(shared);
  __syncthreads();
  PdlWait();
  if (threadIdx.x >= kConsumerThreads) {
    ShrinkRegisters<kProducerRegisters>();
    if (threadIdx.x < kConsumerThreads + 32) Producer(p, shared).Run();
  } else {
    GrowRegisters<kConsumerRegisters>();
    Consumer(p, shared).Run();
  }
}

constexpr int kSharedBytes = sizeof(PrefillShared) + 1024;

PrefillParams MakeParams(const AttentionParams& params) {
  const AttentionShape& shape = params.shape;
  const auto group = static_cast<uint32_t>(shape.heads / shape.kv_heads);
  int group_shift = 0;
  while (1u << group_shift < group) ++group_shift;
  const auto row_bytes = static_cast<uint64_t>(shape.row_values()) * 2;
  const uint64_t cache_rows = params.cache.blocks * shape.kv_heads * kKvBlockTokens;
  const auto cache_map = [&](const __nv_bfloat16* data) {
    return MakeTensorMap(SwizzledArray<2>{.data = data,
                                          .sizes = {kFastHeadDim, cache_rows},
                                          .strides = {kRowBytes},
                                          .box = {kFastHeadDim, kKvBlockTokens}});
  };
  const CUtensorMap queries = MakeTensorMap(SwizzledArray<3>{
      .data = params.qkv,
      .sizes = {kFastHeadDim, row_bytes / kRowBytes, static_cast<uint64_t>(params.view.rows)},
      .strides = {kRowBytes, row_bytes},
      .box = {kFastHeadDim, group, kGroupRows / group}});
  return {.queries = queries,
          .keys = cache_map(params.cache.keys),
          .values = cache_map(params.cache.values),
          .attention = params,
          .group_shift = group_shift};
}

}  // namespace
}  // namespace prefill

void LaunchPrefill(const AttentionParams& params, cudaStream_t stream) {
  using namespace prefill;  // NOLINT(google-build-using-namespace)
  const int64_t items = int64_t{PrefillItems(params.shape, params.view.rows, params.view.runs)} *
                        params.shape.kv_heads;
  const auto blocks = static_cast<int>(std::min<int64_t>(items, NumMultiprocessors()));
  static const cudaError_t raised = cudaFuncSetAttribute(
      PrefillKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (raised != cudaSuccess) return;  // left for cudaGetLastError
  LaunchDependent(PrefillKernel,
                  {.grid = dim3(blocks), .block = dim3(kThreads), .shared_bytes = kSharedBytes},
                  stream, MakeParams(params));
}

}  // namespace conclave::kernels::cuda
