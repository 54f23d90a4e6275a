#include "kernels/cuda/expert_group.h"

#include "kernels/cuda/expert_tokens.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kGroupThreads = 1024;
constexpr int kGroupWarps = kGroupThreads / 32;
// A lane keeps one 32-pair mask of each of these.
constexpr int kMaskWords = kMaxGroupedPairs / kGroupThreads / 32;
static_assert(kMaskWords * 32 * kGroupThreads == kMaxGroupedPairs);

constexpr int kSumThreads = 192;

// Block e lists the pairs of local expert e. A warp has a contiguous range of pairs and looks at
// each once: lane i keeps the ballot of the i-th 32 pairs, from which places follow after the
// counts of the warps before are known.
__global__ void __launch_bounds__(kGroupThreads)
    GroupPairsKernel(const __grid_constant__ TokenArgs tokens, GroupArgs groups) {
  __shared__ SourceBegins sources;
  __shared__ int32_t warp_count[kGroupWarps];
  __shared__ int32_t warp_less[kGroupWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int expert = blockIdx.x;
  PdlWait();
  if (warp == 0) ReadSources(tokens, lane, sources);
  __syncthreads();
  const int32_t pairs = sources.begin[tokens.num_sources] * tokens.k;
  const int32_t per_warp = (pairs + kGroupThreads - 1) / kGroupThreads * 32;
  const int32_t begin = warp * per_warp;

  uint32_t masks[kMaskWords] = {};
  int32_t count = 0;
  int32_t less = 0;
#pragma unroll
  for (int word = 0; word < kMaskWords; ++word) {
    if (word * 1024 >= per_warp) break;
#pragma unroll 8
    for (int i = 0; i < 32; ++i) {
      const int32_t offset = word * 1024 + i * 32;
      const int32_t pair = begin + offset + lane;
      int32_t local = -1;
      if (offset < per_warp && pair < pairs) {
        const CopyPlace place = PlaceOfCopy(tokens, sources, pair / tokens.k);
        local = LocalExpert(tokens, ExpertId(tokens, place.slot, pair % tokens.k));
      }
      const uint32_t mask = __ballot_sync(kAllLanes, local == expert);
      if (lane == i) masks[word] = mask;
      count += __popc(mask);
      less += __popc(__ballot_sync(kAllLanes, local >= 0 && local < expert));
    }
  }
  if (lane == 0) {
    warp_count[warp] = count;
    warp_less[warp] = less;
  }
  __syncthreads();
  int32_t offset = 0;
  int32_t total = 0;
  for (int w = 0; w < kGroupWarps; ++w) {
    offset += warp_less[w];
    total += warp_count[w];
  }
  if (threadIdx.x == 0) {
    groups.offsets[expert] = offset;
    if (expert + 1 == tokens.num_local) groups.offsets[expert + 1] = offset + total;
  }
  for (int w = 0; w < warp; ++w) offset += warp_count[w];

#pragma unroll
  for (int word = 0; word < kMaskWords; ++word) {
    if (word * 1024 >= per_warp) break;
    for (int i = 0; i < 32; ++i) {
      const uint32_t mask = __shfl_sync(kAllLanes, masks[word], i);
      if (mask >> lane & 1) {
        const int32_t pair = begin + word * 1024 + i * 32 + lane;
        const int32_t at = offset + __popc(mask & ((1u << lane) - 1));
        const CopyPlace place = PlaceOfCopy(tokens, sources, pair / tokens.k);
        groups.slot[at] = place.slot;
        groups.out_row[at] = place.output_row * tokens.k + pair % tokens.k;
        groups.pair[at] = pair;
      }
      offset += __popc(mask);
    }
  }
}

// Four consecutive results of a row.
__device__ float4 LoadFour(const PartialArgs& y, int64_t at) {
  if (!y.bf16) return *reinterpret_cast<const float4*>(static_cast<const float*>(y.rows) + at);
  const uint2 packed =
      *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(y.rows) + at);
  return {__uint_as_float(packed.x << 16), __uint_as_float(packed.x & 0xFFFF0000u),
          __uint_as_float(packed.y << 16), __uint_as_float(packed.y & 0xFFFF0000u)};
}

// x += sum, rounded once.
__device__ void AddFour(const float4& sum, __nv_bfloat16* x) {
  const uint2 packed = *reinterpret_cast<const uint2*>(x);
  const __nv_bfloat162 low = __floats2bfloat162_rn(__uint_as_float(packed.x << 16) + sum.x,
                                                   __uint_as_float(packed.x & 0xFFFF0000u) + sum.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(
      __uint_as_float(packed.y << 16) + sum.z, __uint_as_float(packed.y & 0xFFFF0000u) + sum.w);
  *reinterpret_cast<uint2*>(x) = {reinterpret_cast<const uint32_t&>(low),
                                  reinterpret_cast<const uint32_t&>(high)};
}

// Block: one copy, kSumThreads * 4 columns.
__global__ void __launch_bounds__(kSumThreads)
    SumPartialsKernel(const __grid_constant__ TokenArgs tokens, PartialArgs y, int hidden,
                      bool tokens_complete, float* out, __nv_bfloat16* x) {
  __shared__ SourceBegins sources;
  __shared__ int32_t pairs[kMaxChoices];
  __shared__ float weights[kMaxChoices];
  __shared__ int32_t num_pairs;
  const int copy = blockIdx.x;
  const int lane = threadIdx.x;
  int32_t chosen = -1;  // the local expert of choice `lane`
  PdlTrigger();
  if (!tokens_complete) PdlWait();
  if (lane < 32) {
    ReadSources(tokens, lane, sources);
    __syncwarp();
    if (copy < sources.begin[tokens.num_sources]) {
      const CopyPlace place = PlaceOfCopy(tokens, sources, copy);
      const int32_t id = lane < tokens.k ? ExpertId(tokens, place.slot, lane) : -1;
      chosen = LocalExpert(tokens, id);
      const bool local = chosen >= 0;
      int rank = 0;  // among the local choices, by id, then choice
      for (int j = 0; j < tokens.k; ++j) {
        const int32_t other = __shfl_sync(kAllLanes, id, j);
        const bool other_local = __shfl_sync(kAllLanes, local, j);
        if (other_local && (other < id || (other == id && j < lane))) ++rank;
      }
      if (local) {
        pairs[rank] = copy * tokens.k + lane;
        weights[rank] = RoutingWeight(tokens, place.slot, lane);
      }
      const uint32_t all = __ballot_sync(kAllLanes, local);
      if (lane == 0) num_pairs = __popc(all);
    }
  }
  __syncthreads();
  PdlWait();
  if (copy >= sources.begin[tokens.num_sources]) return;
  // Whole numbers: the order of the additions does not matter.
  if (tokens.load != nullptr && chosen >= 0 && blockIdx.y == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(tokens.load + chosen), 1ull);
  }
  const int col = (blockIdx.y * kSumThreads + threadIdx.x) * 4;
  if (col >= hidden) return;
  float4 sum = {0, 0, 0, 0};
  for (int i = 0; i < num_pairs; ++i) {
    const float4 value = LoadFour(y, int64_t{pairs[i]} * hidden + col);
    sum.x += weights[i] * value.x;
    sum.y += weights[i] * value.y;
    sum.z += weights[i] * value.z;
    sum.w += weights[i] * value.w;
  }
  const CopyPlace place = PlaceOfCopy(tokens, sources, copy);
  const int64_t at = int64_t{place.output_row} * hidden + col;
  if (x == nullptr) {
    *reinterpret_cast<float4*>(out + at) = sum;
  } else {
    AddFour(sum, x + at);
  }
}

}  // namespace

void GroupPairs(const TokenArgs& tokens, const GroupArgs& groups, cudaStream_t stream) {
  LaunchDependent(GroupPairsKernel, {dim3(tokens.num_local), dim3(kGroupThreads)}, stream, tokens,
                  groups);
}

void SumPartials(const TokenArgs& tokens, const PartialArgs& y, int hidden, bool tokens_complete,
                 float* out, __nv_bfloat16* x, cudaStream_t stream) {
  const dim3 grid(tokens.max_copies, (hidden + kSumThreads * 4 - 1) / (kSumThreads * 4));
  LaunchDependent(SumPartialsKernel, {grid, dim3(kSumThreads)}, stream, tokens, y, hidden,
                  tokens_complete, out, x);
}

}  // namespace conclave::kernels::cuda
