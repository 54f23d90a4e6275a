// A unit is one tile of 16 weight rows (all columns, ~24 KB at 2880, contiguous) times up to
// 8 * token_blocks tokens of one expert. Units of all experts that have tokens stand in one line,
// of which each block, or a few blocks in turn, take an equal contiguous share.
//
// The last warp fetches tiles into a ring with bulk copies. The other warps multiply: each owns
// some of the columns, keeps the tokens' fragments of those in registers while the expert stays the
// same, and leaves its sums of a tile where its weights lay. The last warp adds the warps' sums in
// order, so that results do not depend on timing, and finishes the rows. One barrier says both that
// the sums are there and that the stage is free.
//
// Each block sorts the pairs by expert for itself: for so few that is faster than another kernel.

#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/expert_ptx.cuh"
#include "kernels/cuda/expert_stream.h"
#include "kernels/cuda/expert_stream_share.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mxfp4_decode.cuh"

namespace conclave::kernels::cuda {
namespace {

using stream::Run;
using stream::Share;
using stream::Shared;
using stream::SortPairs;

constexpr int kMaxChunks = kMaxStreamGroups * kGroupChunks;

struct StreamArgs {
  TokenArgs tokens;
  MatrixArgs matrix;
  MatrixArgs next_matrix;  // down, for gate_up
  SwiGluArgs swiglu;
  __nv_bfloat16* activations;  // output of gate_up, input of down
  float* y;                    // output of down
  int hidden;
  int stages;
  int interleave;
  int prefetch;
};

constexpr int kStagesOffset = (sizeof(Shared) + 127) / 128 * 128;

// What a kernel is compiled for.
template <bool is_gate_up, int num_token_blocks, int num_warp_chunks>
struct Config {
  static constexpr bool gate_up = is_gate_up;
  static constexpr int token_blocks = num_token_blocks;
  static constexpr int warp_chunks = num_warp_chunks;         // of 64 columns, owned by a warp
  static constexpr int max_warps = kMaxChunks / warp_chunks;  // that multiply
  static constexpr int threads = (max_warps + 1) * 32;
  static constexpr int tokens = token_blocks * 8;
  // Kernels with few registers leave room for a second block: of the next kernel, or their own.
  static constexpr int min_blocks = token_blocks == 1 ? 2 : 1;
  // Several sums of a block take turns, so that a product need not wait for the one before.
  static constexpr int sums = token_blocks == 1 ? 2 : 1;
  static_assert(sums <= 2);
  static_assert(kMaxChunks % warp_chunks == 0 && token_blocks <= warp_chunks);

  __device__ static int Warps(const MatrixArgs& matrix) {
    return matrix.groups * kGroupChunks / warp_chunks;
  }
};

// Of a chunk's weights and scales within a tile.
__device__ int ChunkOffset(int chunk) {
  return chunk / kGroupChunks * kGroupBytes + chunk % kGroupChunks * kChunkBytes;
}
__device__ int ScaleOffset(int chunk) {
  return chunk / kGroupChunks * kGroupBytes + kScalesOffset +
         chunk % kGroupChunks * kChunkScaleBytes;
}

// Barriers 1 ... : the warps are done with the stage.
__device__ void ArriveDone(int stage, int warps) {
  asm volatile("bar.arrive %0, %1;" ::"r"(stage + 1), "r"((warps + 1) * 32) : "memory");
}
__device__ void WaitDone(int stage, int warps) { NamedBarrier(stage + 1, (warps + 1) * 32); }

struct Stage {
  int index = 0;
  uint32_t parity = 0;
  __device__ void Next(int stages) {
    if (++index == stages) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Row of the activations of a pair.
__device__ int64_t ActivationRow(const TokenArgs& tokens, const Shared& shared, int pair) {
  const CopyPlace place = PlaceOfCopy(tokens, shared.sources, pair / tokens.k);
  return int64_t{place.output_row} * tokens.k + pair % tokens.k;
}

template <bool gate_up>
__device__ const __nv_bfloat16* InputRow(const StreamArgs& args, const Shared& shared, int pair) {
  if (gate_up) {
    const CopyPlace place = PlaceOfCopy(args.tokens, shared.sources, pair / args.tokens.k);
    return reinterpret_cast<const __nv_bfloat16*>(args.tokens.hidden +
                                                  place.slot * args.tokens.hidden_stride);
  }
  return args.activations + ActivationRow(args.tokens, shared, pair) * args.matrix.cols;
}

// b[block][8 chunk + i]: columns 8 i + 2t, + 1 of the warp's chunk, of token 8 block + g.
template <typename C>
__device__ void LoadTokens(const StreamArgs& args, const Shared& shared, const Run& run, int warp,
                           int lane, uint32_t (&b)[C::token_blocks][C::warp_chunks * 8]) {
#pragma unroll
  for (int block = 0; block < C::token_blocks; ++block) {
    const int token = block * 8 + lane / 4;
    const bool valid = token < run.num_tokens;
    const __nv_bfloat16* row =
        valid ? InputRow<C::gate_up>(args, shared, shared.sorted[run.first_token + token])
              : nullptr;
#pragma unroll
    for (int i = 0; i < C::warp_chunks * 8; ++i) {
      const int col = warp * (C::warp_chunks * kChunkCols) + i * 8;
      b[block][i] = valid && col < args.matrix.cols
                        ? *reinterpret_cast<const uint32_t*>(row + col + lane % 4 * 2)
                        : 0;
    }
  }
}

template <typename C>
__device__ void Multiply(const StreamArgs& args, Shared& shared, std::byte* ring, int warp,
                         int lane) {
  const int first_chunk = warp * C::warp_chunks;
  const int warps = C::Warps(args.matrix);
  const auto tile_bytes = static_cast<int>(args.matrix.tile_bytes);
  uint32_t b[C::token_blocks][C::warp_chunks * 8];
  Stage stage;
  Share share(shared, args.matrix.tiles, C::tokens, args.interleave);
  for (Run run; share.Next(run);) {
    LoadTokens<C>(args, shared, run, warp, lane, b);
    for (; run.tile < run.end_tile; run.tile += args.interleave) {
      BarrierWait(&shared.filled[stage.index], stage.parity);
      std::byte* tile = ring + stage.index * tile_bytes;
      float sums[C::token_blocks][C::sums][4] = {};
#pragma unroll
      for (int chunk = 0; chunk < C::warp_chunks; ++chunk) {
        uint32_t a[4][4];
        DecodeChunk(LoadShared16(tile + ChunkOffset(first_chunk + chunk) + lane * 16),
                    *reinterpret_cast<const uint32_t*>(tile + ScaleOffset(first_chunk + chunk) +
                                                       lane / 4 * 4),
                    a);
#pragma unroll
        for (int block = 0; block < C::token_blocks; ++block) {
          if (block > 0 && block * 8 >= run.num_tokens) break;
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            MmaBf16(sums[block][step % C::sums], a[step][0], a[step][1], a[step][2], a[step][3],
                    b[block][chunk * 8 + step * 2], b[block][chunk * 8 + step * 2 + 1]);
          }
        }
      }
      __syncwarp();
#pragma unroll
      for (int block = 0; block < C::token_blocks; ++block) {
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[i] = sums[block][0][i];
          if (C::sums > 1) sum[i] += sums[block][C::sums - 1][i];
        }
        *reinterpret_cast<float4*>(tile + ChunkOffset(first_chunk + block) + lane * 16) = {
            sum[0], sum[1], sum[2], sum[3]};
      }
      ArriveDone(stage.index, warps);
      stage.Next(args.stages);
    }
  }
}

// Fetches tile after tile of the share; all lanes keep count, one issues.
template <typename C>
class Fetcher {
 public:
  __device__ Fetcher(const StreamArgs& args, Shared& shared, std::byte* ring)
      : args_(args),
        shared_(shared),
        ring_(ring),
        share_(shared, args.matrix.tiles, C::tokens, args.interleave) {
    NextRun();
  }
  __device__ bool AtEnd() const { return at_end_; }
  __device__ void Fetch(int lane) {
    const auto bytes = static_cast<uint32_t>(args_.matrix.tile_bytes);
    if (lane == 0) {
      // The sums in the stage were ordinary writes.
      FenceProxyAsync();
      BarrierArriveExpect(&shared_.filled[stage_.index], bytes);
      BulkCopyOnce(ring_ + stage_.index * bytes, tile_, bytes, &shared_.filled[stage_.index]);
    }
    stage_.Next(args_.stages);
    tile_ += bytes * args_.interleave;
    run_.tile += args_.interleave;
    if (run_.tile >= run_.end_tile) NextRun();
  }

 private:
  __device__ void NextRun() {
    at_end_ = !share_.Next(run_);
    if (at_end_) return;
    tile_ = args_.matrix.data + run_.expert * args_.matrix.expert_bytes +
            run_.tile * args_.matrix.tile_bytes;
  }

  const StreamArgs& args_;
  Shared& shared_;
  std::byte* ring_;
  Share share_;
  Run run_;
  Stage stage_;
  const std::byte* tile_ = nullptr;
  bool at_end_ = false;
};

// Where the results of a lane's tokens of a run go: of tile 0, weight row g. Null: no token.
template <typename C>
struct Outputs {
  using Value = std::conditional_t<C::gate_up, __nv_bfloat16, float>;

  __device__ Outputs(const StreamArgs& args, const Shared& shared, const Run& run, int lane) {
#pragma unroll
    for (int i = 0; i < C::token_blocks * 2; ++i) {
      const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
      to[i] = nullptr;
      if (token >= run.num_tokens) continue;
      const int pair = shared.sorted[run.first_token + token];
      if constexpr (C::gate_up) {
        to[i] = args.activations +
                ActivationRow(args.tokens, shared, pair) * (args.matrix.tiles * 8) + lane / 4;
      } else {
        to[i] = args.y + int64_t{pair} * args.hidden + lane / 4;
      }
    }
  }
  // `low` and `high`: of weight rows g and g + 8 (gate_up: gate and up).
  __device__ void Store(const StreamArgs& args, int i, int tile, float low, float high) const {
    if (to[i] == nullptr) return;
    if constexpr (C::gate_up) {
      to[i][tile * 8] = __float2bfloat16_rn(SwiGlu(low, high, args.swiglu));
    } else {
      to[i][tile * kTileRows] = low;
      to[i][tile * kTileRows + 8] = high;
    }
  }

  Value* to[C::token_blocks * 2];
};

template <typename C>
__device__ float4 AddSums(const std::byte* tile, int warps, int block, int lane) {
  float4 parts[C::max_warps];
#pragma unroll
  for (int warp = 0; warp < C::max_warps; ++warp) {
    parts[warp] = {0, 0, 0, 0};
    if (warp < warps) {
      parts[warp] = *reinterpret_cast<const float4*>(
          tile + ChunkOffset(warp * C::warp_chunks + block) + lane * 16);
    }
  }
  float4 sum = parts[0];
#pragma unroll
  for (int warp = 1; warp < C::max_warps; ++warp) {
    sum.x += parts[warp].x;
    sum.y += parts[warp].y;
    sum.z += parts[warp].z;
    sum.w += parts[warp].w;
  }
  return sum;
}

// By one thread: the first tiles of the block's share of the next kernel.
template <typename C>
__device__ void PrefetchNext(const StreamArgs& args, const Shared& shared) {
  const MatrixArgs& matrix = args.next_matrix;
  Share share(shared, matrix.tiles, C::tokens, args.interleave);
  int left = args.prefetch;
  for (Run run; left > 0 && share.Next(run);) {
    const std::byte* expert = matrix.data + run.expert * matrix.expert_bytes;
    for (; left > 0 && run.tile < run.end_tile; run.tile += args.interleave, --left) {
      PrefetchL2(expert + run.tile * matrix.tile_bytes, static_cast<uint32_t>(matrix.tile_bytes));
    }
  }
}

template <typename C>
__device__ void FetchAndFinish(const StreamArgs& args, Shared& shared, std::byte* ring, int lane) {
  const int warps = C::Warps(args.matrix);
  const auto tile_bytes = static_cast<int>(args.matrix.tile_bytes);
  Fetcher<C> fetcher(args, shared, ring);
  bool triggered = false;
  const auto trigger_at_end = [&] {
    if (triggered || !fetcher.AtEnd()) return;
    if (C::gate_up && args.prefetch > 0 && lane == 0) PrefetchNext<C>(args, shared);
    // The next kernel may count on everything before this one.
    PdlWait();
    PdlTrigger();
    triggered = true;
  };
  for (int i = 0; i < args.stages && !fetcher.AtEnd(); ++i) fetcher.Fetch(lane);
  trigger_at_end();
  Stage stage;
  Share share(shared, args.matrix.tiles, C::tokens, args.interleave);
  for (Run run; share.Next(run);) {
    const Outputs<C> outputs(args, shared, run, lane);
    for (; run.tile < run.end_tile; run.tile += args.interleave) {
      const std::byte* tile = ring + stage.index * tile_bytes;
      WaitDone(stage.index, warps);
      const auto* trailer =
          reinterpret_cast<const uint32_t*>(tile + tile_bytes - kTrailerBytes) + lane / 4;
      const uint32_t low_row = trailer[0];
      const uint32_t high_row = trailer[8];
      float4 sums[C::token_blocks];
#pragma unroll
      for (int block = 0; block < C::token_blocks; ++block) {
        sums[block] = AddSums<C>(tile, warps, block, lane);
      }
      __syncwarp();
      if (!fetcher.AtEnd()) fetcher.Fetch(lane);
      trigger_at_end();
#pragma unroll
      for (int block = 0; block < C::token_blocks; ++block) {
        const float values[4] = {sums[block].x * TrailerFactor(low_row) + TrailerBias(low_row),
                                 sums[block].y * TrailerFactor(low_row) + TrailerBias(low_row),
                                 sums[block].z * TrailerFactor(high_row) + TrailerBias(high_row),
                                 sums[block].w * TrailerFactor(high_row) + TrailerBias(high_row)};
        outputs.Store(args, block * 2, run.tile, values[0], values[2]);
        outputs.Store(args, block * 2 + 1, run.tile, values[1], values[3]);
      }
      stage.Next(args.stages);
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(C::threads, C::min_blocks)
    StreamKernel(const __grid_constant__ StreamArgs args) {
  extern __shared__ __align__(128) std::byte memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  std::byte* ring = memory + kStagesOffset;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < args.stages; ++i) BarrierInit(&shared.filled[i], 1);
    BarrierInitFence();
  }
  for (int i = threadIdx.x; i < args.tokens.num_experts; i += C::threads) {
    shared.local_index[i] = static_cast<int16_t>(LocalExpert(args.tokens, i));
  }
  __syncthreads();
  // Down reads tokens that the kernel before gate_up wrote: gate_up let it start after waiting.
  if (C::gate_up) PdlWait();
  SortPairs<C::threads, C::tokens>(args.tokens, shared);
  if (shared.num_active == 0) {
    PdlWait();
    return;
  }
  if (warp == C::max_warps) {
    FetchAndFinish<C>(args, shared, ring, lane);
  } else if (warp < C::Warps(args.matrix)) {
    if (!C::gate_up) PdlWait();
    Multiply<C>(args, shared, ring, warp, lane);
  }
}

template <typename C>
void Launch(StreamArgs args, const StreamOptions& options, cudaStream_t stream) {
  args.stages = options.stages;
  args.interleave = options.interleave;
  args.prefetch = options.prefetch;
  const size_t shared_bytes = kStagesOffset + options.stages * args.matrix.tile_bytes;
  cudaFuncSetAttribute(StreamKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(shared_bytes));
  const int blocks = NumMultiprocessors() * options.blocks_per_multiprocessor;
  const dim3 grid(blocks / options.interleave * options.interleave);
  LaunchDependent(StreamKernel<C>, {grid, dim3(C::threads), shared_bytes}, stream, args);
}

template <bool gate_up>
void LaunchFor(const StreamArgs& args, const StreamOptions& options, cudaStream_t stream) {
  const bool three = options.warp_chunks == 3 && args.matrix.groups % 3 == 0;
  switch (options.token_blocks) {
    case 1:
      return three ? Launch<Config<gate_up, 1, 3>>(args, options, stream)
                   : Launch<Config<gate_up, 1, 5>>(args, options, stream);
    case 2:
      return three ? Launch<Config<gate_up, 2, 3>>(args, options, stream)
                   : Launch<Config<gate_up, 2, 5>>(args, options, stream);
    default:
      return Launch<Config<gate_up, 3, 5>>(args, options, stream);
  }
}

}  // namespace

bool CanStreamExperts(const TokenArgs& tokens, const MatrixArgs& gate_up, const MatrixArgs& down) {
  const auto fits = [](const MatrixArgs& matrix) {
    return matrix.groups > 0 && matrix.groups <= kMaxStreamGroups;
  };
  return fits(gate_up) && fits(down) && tokens.num_experts <= kMaxStreamExperts &&
         tokens.max_copies * tokens.k <= kMaxStreamPairs;
}

void StreamGateUp(const TokenArgs& tokens, const MatrixArgs& gate_up, const MatrixArgs& down,
                  const SwiGluArgs& swiglu, __nv_bfloat16* activations,
                  const StreamOptions& options, cudaStream_t stream) {
  StreamArgs args = {};
  args.tokens = tokens;
  args.matrix = gate_up;
  args.next_matrix = down;
  args.swiglu = swiglu;
  args.activations = activations;
  LaunchFor<true>(args, options, stream);
}

void StreamDown(const TokenArgs& tokens, const MatrixArgs& down, const __nv_bfloat16* activations,
                int hidden, float* y, const StreamOptions& options, cudaStream_t stream) {
  StreamArgs args = {};
  args.tokens = tokens;
  args.matrix = down;
  args.activations = const_cast<__nv_bfloat16*>(activations);
  args.y = y;
  args.hidden = hidden;
  LaunchFor<false>(args, options, stream);
}

}  // namespace conclave::kernels::cuda
