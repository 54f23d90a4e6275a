#include "kernels/cuda/embedding.h"

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    EmbedKernel(EmbeddingShard shard, const int32_t* ids, const int32_t* last_sampled, int vectors,
                uint4* x) {
  // In this order: the step's plan is complete before any kernel after this one starts.
  PdlWait();
  PdlTrigger();
  const int64_t row = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (at >= vectors) return;
  int64_t id = ids[row];
  if (id < 0) id = last_sampled[-1 - id];
  id -= shard.first_id;
  uint4 value = {0, 0, 0, 0};
  if (id >= 0 && id < shard.rows) {
    value = reinterpret_cast<const uint4*>(shard.data + id * shard.row_stride)[at];
  }
  x[row * vectors + at] = value;
}

__global__ void __launch_bounds__(kThreads)
    StoreKernel(const int32_t* tokens, const int32_t* slots, int count, int32_t* last_sampled) {
  PdlTrigger();
  PdlWait();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < count && slots[i] >= 0) last_sampled[slots[i]] = tokens[i];
}

}  // namespace

void Embed(const EmbeddingShard& shard, const int32_t* ids, const int32_t* last_sampled, int rows,
           int64_t hidden, __nv_bfloat16* x, cudaStream_t stream) {
  if (rows == 0) return;
  const int vectors = static_cast<int>(hidden / kVec);
  LaunchDependent(EmbedKernel, {dim3(rows, (vectors + kThreads - 1) / kThreads), dim3(kThreads)},
                  stream, shard, ids, last_sampled, vectors, reinterpret_cast<uint4*>(x));
}

void StoreSampled(const int32_t* tokens, const int32_t* slots, int count, int32_t* last_sampled,
                  cudaStream_t stream) {
  if (count == 0) return;
  LaunchDependent(StoreKernel, {dim3((count + kThreads - 1) / kThreads), dim3(kThreads)}, stream,
                  tokens, slots, count, last_sampled);
}

}  // namespace conclave::kernels::cuda
