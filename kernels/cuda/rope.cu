// One block per row. A thread takes one unit: kVec pairs (i, i + half) of a head, two vectors.

#include <algorithm>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/rope_rotate.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kMaxThreads = 512;

struct RopeParams {
  StepView view;
  AttentionShape shape;
  RopeTable table;
  KvPages cache;
  __nv_bfloat16* qkv;
};

__global__ void FillKernel(const float* frequencies, float factor, RopeTable table) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= int64_t{table.positions} * table.half) return;
  const auto position = static_cast<float>(at / table.half);
  float sine;
  float cosine;
  sincosf(__fmul_rn(position, frequencies[at % table.half]), &sine, &cosine);
  table.angles[at] = {cosine * factor, sine * factor};
}

// kVec pairs at once.
struct VectorPairs {
  static constexpr int kSize = kVec;

  static __device__ void Rotate(__nv_bfloat16* low, __nv_bfloat16* high, const float2* angles) {
    float4 pairs[kVec / 2];
#pragma unroll
    for (int i = 0; i < kVec / 2; ++i) pairs[i] = reinterpret_cast<const float4*>(angles)[i];
    auto* a = reinterpret_cast<uint4*>(low);
    auto* b = reinterpret_cast<uint4*>(high);
    RotatePairs(pairs, *a, *b);
  }

  static __device__ void Copy(const __nv_bfloat16* from, __nv_bfloat16* to) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  }
};

struct SinglePairs {
  static constexpr int kSize = 1;

  static __device__ void Rotate(__nv_bfloat16* low, __nv_bfloat16* high, const float2* angles) {
    const float a = ToFloat(*low);
    const float b = ToFloat(*high);
    Store(a * angles->x - b * angles->y, low);
    Store(b * angles->x + a * angles->y, high);
  }

  static __device__ void Copy(const __nv_bfloat16* from, __nv_bfloat16* to) { *to = *from; }
};

// First value of the position's row of kv head 0 in the cache.
__device__ int64_t CacheRow(const RopeParams& p, const RunView& run, int position) {
  const int block = position / kKvBlockTokens;
  const int place =
      p.cache.sliding ? run.sliding_offset + block - run.sliding_first : run.full_offset + block;
  const int64_t first_row = int64_t{p.view.blocks[place]} * p.shape.kv_heads * kKvBlockTokens;
  return (first_row + position % kKvBlockTokens) * p.shape.head_dim;
}

template <typename Pairs>
__global__ void __launch_bounds__(kMaxThreads) RopeKernel(RopeParams p) {
  PdlTrigger();
  PdlWait();
  const int row = blockIdx.x;
  const int run_index = p.view.run_of_row[row];
  if (run_index < 0) return;
  const int half = p.shape.head_dim / 2;
  const int units_per_head = half / Pairs::kSize;
  const int units = (p.shape.heads + 2 * p.shape.kv_heads) * units_per_head;
  const int position = p.view.positions[row];
  const int64_t cache_row = CacheRow(p, p.view.run[run_index], position);
  __nv_bfloat16* qkv = p.qkv + int64_t{row} * p.shape.row_values();
  const float2* angles = p.table.angles + int64_t{position} * half;
  for (int unit = threadIdx.x; unit < units; unit += blockDim.x) {
    const int head = unit / units_per_head;
    const int i = unit % units_per_head * Pairs::kSize;
    __nv_bfloat16* low = qkv + head * p.shape.head_dim + i;
    const bool value = head >= p.shape.heads + p.shape.kv_heads;
    if (!value) Pairs::Rotate(low, low + half, angles + i);
    if (head < p.shape.heads) continue;
    const int kv_head = head - p.shape.heads - (value ? p.shape.kv_heads : 0);
    __nv_bfloat16* to = (value ? p.cache.values : p.cache.keys) + cache_row +
                        int64_t{kv_head} * kKvBlockTokens * p.shape.head_dim + i;
    Pairs::Copy(low, to);
    Pairs::Copy(low + half, to + half);
  }
}

template <typename Pairs>
void Launch(const RopeParams& params, cudaStream_t stream) {
  const int units = params.shape.row_values() / 2 / Pairs::kSize;
  const int threads = std::min((units + 31) / 32 * 32, kMaxThreads);
  LaunchDependent(RopeKernel<Pairs>, {.grid = dim3(params.view.rows), .block = dim3(threads)},
                  stream, params);
}

}  // namespace

int64_t RopeTableBytes(int positions, int head_dim) {
  return int64_t{positions} * (head_dim / 2) * static_cast<int64_t>(sizeof(float2));
}

void FillRopeTable(const float* inverse_frequencies, float attention_factor, const RopeTable& table,
                   cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t size = int64_t{table.positions} * table.half;
  if (size == 0) return;
  const auto blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
  FillKernel<<<blocks, kThreads, 0, stream>>>(inverse_frequencies, attention_factor, table);
}

void RopeAndCacheWrite(const StepView& view, const AttentionShape& shape, const RopeTable& table,
                       const KvPages& cache, __nv_bfloat16* qkv, cudaStream_t stream) {
  if (view.rows == 0) return;
  const RopeParams params = {view, shape, table, cache, qkv};
  if (shape.head_dim % (2 * kVec) == 0) {
    Launch<VectorPairs>(params, stream);
  } else {
    Launch<SinglePairs>(params, stream);
  }
}

}  // namespace conclave::kernels::cuda
