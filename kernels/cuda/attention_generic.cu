// Attention for any head size and ratio of heads: one block per row and query head. Slow: every
// head reads its keys anew, on the CUDA cores.

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// The same in all threads; `shared` [kWarps].
__device__ float BlockMax(float value, float* shared) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) value = fmaxf(value, shared[warp]);
  return value;
}

// Dynamic shared memory: query [D], sums [D], weights [kThreads], all float.
__global__ void __launch_bounds__(kThreads) GenericKernel(AttentionParams p) {
  extern __shared__ float memory[];
  __shared__ float maxima[kWarps];
  PdlTrigger();
  PdlWait();
  const int row = blockIdx.x;
  const int head = blockIdx.y;
  const int run_index = p.view.run_of_row[row];
  if (run_index < 0) return;
  const RunView run = p.view.run[run_index];
  const int dim = p.shape.head_dim;
  const int kv_head = head / (p.shape.heads / p.shape.kv_heads);
  const int position = p.view.positions[row];
  const int32_t* table =
      p.view.blocks + (p.cache.sliding ? run.sliding_offset - run.sliding_first : run.full_offset);
  const auto row_of = [&](int key) {
    const int64_t block = table[key / kKvBlockTokens];
    return ((block * p.shape.kv_heads + kv_head) * kKvBlockTokens + key % kKvBlockTokens) * dim;
  };
  float* query = memory;
  float* sums = query + dim;
  float* weights = sums + dim;
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    query[i] = ToFloat(p.qkv[int64_t{row} * p.shape.row_values() + head * dim + i]);
    sums[i] = 0;
  }
  __syncthreads();

  float maximum = SinkLog2(p, head);
  float weight = 1;  // the sink's
  for (int begin = FirstSeen(p, position); begin <= position; begin += kThreads) {
    const int key = begin + static_cast<int>(threadIdx.x);
    float logit = -INFINITY;
    if (key <= position) {
      const __nv_bfloat16* values = p.cache.keys + row_of(key);
      logit = 0;
      for (int i = 0; i < dim; ++i) logit += query[i] * ToFloat(values[i]);
      logit *= p.scale * kLog2E;
    }
    const float larger = fmaxf(maximum, BlockMax(logit, maxima));
    const float factor = exp2f(maximum - larger);
    maximum = larger;
    weights[threadIdx.x] = exp2f(logit - maximum);
    __syncthreads();
    const int keys = min(kThreads, position + 1 - begin);
    float added = 0;
    for (int j = 0; j < keys; ++j) added += weights[j];
    weight = weight * factor + added;
    for (int i = threadIdx.x; i < dim; i += kThreads) {
      float sum = sums[i] * factor;
      for (int j = 0; j < keys; ++j) {
        sum += weights[j] * ToFloat(p.cache.values[row_of(begin + j) + i]);
      }
      sums[i] = sum;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < dim; i += kThreads) {
    Store(sums[i] / weight, p.out + (int64_t{row} * p.shape.heads + head) * dim + i);
  }
}

}  // namespace

void LaunchGeneric(const AttentionParams& params, cudaStream_t stream) {
  const size_t shared = (2 * params.shape.head_dim + kThreads) * sizeof(float);
  LaunchDependent(GenericKernel,
                  {.grid = dim3(params.view.rows, params.shape.heads),
                   .block = dim3(kThreads),
                   .shared_bytes = shared},
                  stream, params);
}

}  // namespace conclave::kernels::cuda
