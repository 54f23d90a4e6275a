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

// Shared memory of the norm's weight; the rows after it stay aligned.
__host__ __device__ constexpr int64_t NormBytes(int64_t cols) {
  return (cols * 2 + 127) / 128 * 128;
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

// Called by the kStageThreads threads of warps 0..7. Row r < rows, vector v < vectors of the result
// at shared + r * pitch + 16 v; source.Finish(source.Load(r, v), r, v) gives it before the norm,
// where Load only loads, so that many are in flight. `weight` is in shared memory once the first
// phase of `weight_here` is complete. `sums` has a float per warp. One row is spread over 8 warps,
// two over 4 each, up to four over 2, more over one each.
template <bool kNorm, typename Source>
__device__ void StageRows(int rows, int vectors, const uint4* weight, uint64_t* weight_here,
                          float epsilon, unsigned char* shared, int64_t pitch, float* sums,
                          const Source& source) {
  // Loads in flight. More would be more code, and code that runs once is fetched as slowly as data.
  constexpr int kBatch = 6;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int shift = rows == 1 ? 3 : rows == 2 ? 2 : rows <= 4 ? 1 : 0;
  const int share = 1 << shift;  // warps of a row
  const int begin = (warp & (share - 1)) * 32 + lane;
  const int step = 32 * share;
  for (int first = 0; first < rows; first += kStageWarps / share) {
    const int row = first + (warp >> shift);
    const int limit = row < rows ? vectors : 0;
    uint4* to = reinterpret_cast<uint4*>(shared + row * pitch);
    float sum = 0;
    for (int base = begin; base < limit; base += kBatch * step) {
      typename Source::Raw raw[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step < limit) raw[i] = source.Load(row, base + i * step);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i * step >= limit) break;
        const uint4 value = source.Finish(raw[i], row, base + i * step);
        to[base + i * step] = value;
        if (kNorm) sum += SumSquares(value);
      }
    }
    if (!kNorm) continue;
    float total = WarpSum(sum);
    if (share > 1) {  // then there is one pass
      if (lane == 0) sums[warp] = total;
      NamedBarrier(kStageBarrier, kStageThreads);
      const float* parts = sums + ((warp >> shift) << shift);
      total = 0;
#pragma unroll
      for (int i = 0; i < kStageWarps; ++i) {
        if (i < share) total += parts[i];
      }
    }
    const float scale = rsqrtf(total / static_cast<float>(vectors * kVec) + epsilon);
    BarrierWait(weight_here, 0);
#pragma unroll 2
    for (int at = begin; at < limit; at += step) to[at] = ScaleRow(to[at], scale, weight[at]);
  }
  NamedBarrier(kStageBarrier, kStageThreads);
}

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_STAGE_ROWS_CUH_
