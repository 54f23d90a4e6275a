#ifndef CONCLAVE_KERNELS_CUDA_STAGE_ROWS_CUH_
#define CONCLAVE_KERNELS_CUDA_STAGE_ROWS_CUH_

// Activations for tensor-core products, row by row in shared memory, RMSNorm applied on the way.
//
// The pitch of a row is 64 bytes past a multiple of 128, so that eight lanes that read 16 bytes
// each, four from one row and four from the next, touch all 32 banks once.

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/ptx.cuh"

namespace conclave::kernels::cuda {

// Bytes from row to row for rows of `bytes`, a multiple of 64.
__host__ __device__ constexpr int64_t SharedPitch(int64_t bytes) {
  return bytes % 128 == 64 ? bytes : bytes + 64;
}

inline constexpr int kStageWarps = 8;
inline constexpr int kStageThreads = kStageWarps * 32;
inline constexpr int kStageBarrier = 1;  // NamedBarrier of the staging warps

__device__ inline float SumSquares(const uint4& packed) {
  float values[kVec];
  Unpack(packed, values);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += values[i] * values[i];
  return sum;
}

// bf16((x * scale) * weight)
__device__ inline uint4 ScaleRow(const uint4& packed, float scale, const uint4& weight) {
  float values[kVec];
  float weights[kVec];
  Unpack(packed, values);
  Unpack(weight, weights);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = values[i] * scale * weights[i];
  return Pack(values);
}

// Brings a weight vector nearer while the kernel before this one still runs.
__device__ inline void PrefetchL2(const void* memory, int bytes, int thread, int threads) {
  constexpr int kLine = 128;
  for (int at = thread * kLine; at < bytes; at += threads * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(memory) + at));
  }
}

// Called by the kStageThreads threads of warps 0..7. Row r < rows, vector v < vectors of the result
// at shared + r * pitch + 16 v; load(r, v) gives it before the norm. `sums` has a float per warp.
// One row is spread over 8 warps, two over 4 each, up to four over 2, more over one each.
template <bool kNorm, typename Load>
__device__ void StageRows(int rows, int vectors, const uint4* weight, float epsilon,
                          unsigned char* shared, int64_t pitch, float* sums, const Load& load) {
  constexpr int kBatch = 4;  // loads in flight
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int share = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  const int begin = warp % share * 32 + lane;
  const int step = 32 * share;
  for (int first = 0; first < rows; first += kStageWarps / share) {
    const int row = first + warp / share;
    const int limit = row < rows ? vectors : 0;
    uint4* to = reinterpret_cast<uint4*>(shared + row * pitch);
    float sum = 0;
    for (int base = begin; base < limit; base += kBatch * step) {
      uint4 held[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step < limit) held[i] = load(row, base + i * step);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step >= limit) continue;
        to[base + i * step] = held[i];
        if (kNorm) sum += SumSquares(held[i]);
      }
    }
    if (!kNorm) continue;
    sum = WarpSum(sum);
    if (lane == 0) sums[warp] = sum;
    if (share > 1) {
      NamedBarrier(kStageBarrier, kStageThreads);
    } else {
      __syncwarp();
    }
    float total = 0;
    for (int i = 0; i < share; ++i) total += sums[warp / share * share + i];
    const float scale = rsqrtf(total / static_cast<float>(vectors * kVec) + epsilon);
    for (int base = begin; base < limit; base += kBatch * step) {
      uint4 held[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step < limit) held[i] = __ldg(weight + base + i * step);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = base + i * step;
        if (at < limit) to[at] = ScaleRow(to[at], scale, held[i]);
      }
    }
  }
  NamedBarrier(kStageBarrier, kStageThreads);
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STAGE_ROWS_CUH_
