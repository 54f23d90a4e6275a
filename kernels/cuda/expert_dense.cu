// A block takes 64 weight rows (a warp to each tile of 16) of one expert, and its tokens 64 at a
// time. Both operands go through shared memory 32 columns at a time; the next ones are read while
// these are multiplied.

#include "kernels/cuda/expert_dense.h"

#include "kernels/cuda/expert_ptx.cuh"
#include "kernels/cuda/expert_tokens.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mxfp4_decode.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kRows = 64;
constexpr int kCols = 32;
constexpr int kWarps = kRows / kTileRows;
constexpr int kThreads = kWarps * 32;
constexpr int kVectors = kCols * 2 / 16;                 // 16-byte vectors of a row
constexpr int kPerThread = kRows * kVectors / kThreads;  // of either operand
constexpr int kPitch = kCols * 2 + 16;                   // bytes; rows in different banks

struct DenseArgs {
  TokenArgs tokens;
  MatrixArgs matrix;
  GroupArgs groups;
  SwiGluArgs swiglu;
  __nv_bfloat16* activations;
  PartialArgs y;
  int hidden;
};

// A thread's part of [64 rows, 32 columns]: row and vector number i * kThreads + thread.
struct Rows {
  const std::byte* row[kPerThread];  // at the thread's vector of column 0; null: zeros
};

__device__ void Read(const Rows& rows, int col, uint4 (&values)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    values[i] = rows.row[i] == nullptr ? uint4{0, 0, 0, 0}
                                       : *reinterpret_cast<const uint4*>(rows.row[i] + col * 2);
  }
}

__device__ void Put(const uint4 (&values)[kPerThread], std::byte* shared) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + threadIdx.x;
    *reinterpret_cast<uint4*>(shared + at / kVectors * kPitch + at % kVectors * 16) = values[i];
  }
}

// sums[i]: fragment of the warp's 16 rows x tokens 8 i ...
__device__ void Multiply(const std::byte* weights, const std::byte* inputs, float (&sums)[8][4]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kCols / 16; ++step) {
    uint32_t a[4];
    LoadMatrix4(SharedAddress(weights) + (warp * kTileRows + lane % 16) * kPitch + step * 32 +
                    lane / 16 * 16,
                a);
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      uint32_t b[4];
      LoadMatrix4(SharedAddress(inputs) + (i * 8 + lane / 16 * 8 + lane % 8) * kPitch + step * 32 +
                      lane / 8 % 2 * 16,
                  b);
      MmaBf16(sums[i], a[0], a[1], a[2], a[3], b[0], b[1]);
      MmaBf16(sums[i + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

template <bool gate_up>
__device__ const std::byte* InputRow(const DenseArgs& args, int at) {
  if (gate_up) return args.tokens.hidden + args.groups.slot[at] * args.tokens.hidden_stride;
  return reinterpret_cast<const std::byte*>(args.activations +
                                            int64_t{args.groups.out_row[at]} * args.matrix.cols);
}

template <bool gate_up>
__device__ void StoreToken(const DenseArgs& args, int tile, int g, int at, float low, float high) {
  if (gate_up) {
    args.activations[int64_t{args.groups.out_row[at]} * (args.matrix.tiles * 8) + tile * 8 + g] =
        __float2bfloat16_rn(SwiGlu(low, high, args.swiglu));
    return;
  }
  const int64_t out = int64_t{args.groups.pair[at]} * args.hidden + tile * kTileRows + g;
  if (args.y.bf16) {
    static_cast<__nv_bfloat16*>(args.y.rows)[out] = __float2bfloat16_rn(low);
    static_cast<__nv_bfloat16*>(args.y.rows)[out + 8] = __float2bfloat16_rn(high);
  } else {
    static_cast<float*>(args.y.rows)[out] = low;
    static_cast<float*>(args.y.rows)[out + 8] = high;
  }
}

template <bool gate_up>
__global__ void __launch_bounds__(kThreads) DenseKernel(const __grid_constant__ DenseArgs args) {
  __shared__ __align__(16) std::byte weights[kRows * kPitch];
  __shared__ __align__(16) std::byte inputs[kRows * kPitch];
  PdlWait();
  const int begin = args.groups.offsets[blockIdx.y];
  const int end = args.groups.offsets[blockIdx.y + 1];
  const int first_tile = blockIdx.x * kWarps;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int tile = first_tile + threadIdx.x / 32;
  // Tiles are padded to a multiple of kTileMultiple, so of kWarps.
  static_assert(kTileMultiple % kWarps == 0);
  const std::byte* expert = args.matrix.data + blockIdx.y * args.matrix.expert_bytes;
  const auto* trailer = reinterpret_cast<const uint32_t*>(
      expert + (tile + 1) * args.matrix.tile_bytes - kTrailerBytes);

  Rows weight_rows;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int at = i * kThreads + threadIdx.x;
    const int row = at / kVectors;
    weight_rows.row[i] = expert + (first_tile + row / kTileRows) * args.matrix.tile_bytes +
                         int64_t{row % kTileRows} * args.matrix.cols * 2 + at % kVectors * 16;
  }
  for (int first = begin; first < end; first += kRows) {
    Rows input_rows;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = i * kThreads + threadIdx.x;
      const int token = first + at / kVectors;
      input_rows.row[i] =
          token < end ? InputRow<gate_up>(args, token) + at % kVectors * 16 : nullptr;
    }
    float sums[8][4] = {};
    uint4 weight[kPerThread];
    uint4 input[kPerThread];
    Read(weight_rows, 0, weight);
    Read(input_rows, 0, input);
    for (int col = 0; col < args.matrix.cols; col += kCols) {
      __syncthreads();
      Put(weight, weights);
      Put(input, inputs);
      __syncthreads();
      if (col + kCols < args.matrix.cols) {
        Read(weight_rows, col + kCols, weight);
        Read(input_rows, col + kCols, input);
      }
      Multiply(weights, inputs, sums);
    }
    if (tile >= args.matrix.tiles) continue;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int at = first + i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (at < end) {
        StoreToken<gate_up>(args, tile, g, at, sums[i / 2][i % 2] + TrailerBias(trailer[g]),
                            sums[i / 2][2 + i % 2] + TrailerBias(trailer[g + 8]));
      }
    }
  }
}

template <bool gate_up>
void Launch(const DenseArgs& args, cudaStream_t stream) {
  const dim3 grid((args.matrix.tiles + kWarps - 1) / kWarps, args.tokens.num_local);
  LaunchDependent(DenseKernel<gate_up>, {grid, dim3(kThreads)}, stream, args);
}

}  // namespace

void DenseGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const GroupArgs& groups,
                 const SwiGluArgs& swiglu, __nv_bfloat16* activations, cudaStream_t stream) {
  DenseArgs args = {};
  args.tokens = tokens;
  args.matrix = gate_up;
  args.groups = groups;
  args.swiglu = swiglu;
  args.activations = activations;
  Launch<true>(args, stream);
}

void DenseDown(const TokenArgs& tokens, const MatrixArgs& down, const GroupArgs& groups,
               const __nv_bfloat16* activations, int hidden, const PartialArgs& y,
               cudaStream_t stream) {
  DenseArgs args = {};
  args.tokens = tokens;
  args.matrix = down;
  args.groups = groups;
  args.activations = const_cast<__nv_bfloat16*>(activations);
  args.hidden = hidden;
  args.y = y;
  Launch<false>(args, stream);
}

}  // namespace conclave::kernels::cuda
