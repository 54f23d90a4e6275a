#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_TILE_CUH_
#define CONCLAVE_KERNELS_CUDA_EXPERT_TILE_CUH_

// The wgmma kernel of expert_tile.h.
//
// A unit is 192 weight rows (12 tiles) times up to 160 tokens of one expert, all columns; an
// expert's tokens are split evenly over the fewest units. Blocks take units in turn, all at about
// the same expert, so that its tokens' vectors are in the L2 cache and its weights are read once.
//
// One warpgroup fetches, three multiply. Weights come as bulk copies of 320 columns, token vectors
// as 16-byte copies from scattered rows, 64 columns at a time, swizzled as wgmma wants them. The
// fewer tokens, the more of these copies are under way: the ring's memory is cut into more stages.
// Each multiplying warpgroup owns 64 weight rows: it decodes its weights to the A operand in
// registers while the products of the columns before run, and while the other warpgroups keep the
// tensor cores busy.

#include "kernels/cuda/expert_ptx.cuh"
#include "kernels/cuda/expert_tile.h"
#include "kernels/cuda/expert_tokens.cuh"
#include "kernels/cuda/expert_wgmma.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mxfp4_decode.cuh"

namespace conclave::kernels::cuda::tile {

inline constexpr int kWarpgroup = 128;
inline constexpr int kMultiplyGroups = 3;
inline constexpr int kThreads = (kMultiplyGroups + 1) * kWarpgroup;
inline constexpr int kUnitTiles = kMultiplyGroups * 4;
static_assert(kTileMultiple % kUnitTiles == 0);
inline constexpr int kUnitTokens = 160;
inline constexpr int kTokenStep = 16;  // of the sizes that kernels exist for

inline constexpr int kWeightStages = 3;
inline constexpr int kWeightStageBytes = kUnitTiles * kGroupBytes;

// The warps of the fetching warpgroup.
inline constexpr int kTokenThreads = 64;  // copy token vectors
inline constexpr int kRelayWarp = 2;      // tells that copies are complete
inline constexpr int kWeightWarp = 3;

// How the token ring is cut, by tokens of a unit.
inline constexpr int kCuts = 3;
inline constexpr int kMaxTokenStages = 16;
inline constexpr int kRowBytes = kChunkCols * 2;
__host__ __device__ constexpr int CutTokens(int cut) { return cut == 0 ? 48 : cut == 1 ? 96 : 160; }
__host__ __device__ constexpr int CutStages(int cut) { return cut == 0 ? 16 : cut == 1 ? 8 : 5; }
__host__ __device__ constexpr int CutStageBytes(int cut) { return CutTokens(cut) * kRowBytes; }
__host__ __device__ constexpr int CutOf(int tokens) {
  return tokens <= CutTokens(0) ? 0 : tokens <= CutTokens(1) ? 1 : 2;
}
static_assert(CutTokens(kCuts - 1) == kUnitTokens && CutStages(0) == kMaxTokenStages);
inline constexpr int kTokenRingBytes = CutStages(2) * CutStageBytes(2);
static_assert(CutStages(0) * CutStageBytes(0) <= kTokenRingBytes);
static_assert(CutStages(1) * CutStageBytes(1) <= kTokenRingBytes);

// Row tables of units in turn. A unit has at least kGroupChunks chunks, of which kMaxTokenStages
// may be fetched and not multiplied: a table is overwritten when its unit is finished.
inline constexpr int kRowTables = 5;
static_assert((kRowTables - 1) * kGroupChunks > kMaxTokenStages);

struct TileArgs {
  TokenArgs tokens;
  MatrixArgs matrix;
  GroupArgs groups;
  SwiGluArgs swiglu;
  __nv_bfloat16* activations;
  PartialArgs y;
  int hidden;
};

struct Shared {
  uint64_t weights_filled[kWeightStages];
  uint64_t weights_free[kWeightStages];
  uint64_t tokens_copied[kCuts][kMaxTokenStages];  // ordinary copies complete
  uint64_t tokens_filled[kCuts][kMaxTokenStages];  // and visible to the tensor cores
  uint64_t tokens_free[kCuts][kMaxTokenStages];
  uint64_t rows_filled[kRowTables];
  // Of units in turn: where the results go.
  int32_t output[kRowTables][kUnitTokens];
  int32_t unit_begin[kMaxTileExperts + 1];
};
inline constexpr int kHeaderBytes = 1024 * ((sizeof(Shared) + 1023) / 1024);
inline constexpr int kSharedBytes =
    1024 + kHeaderBytes + kTokenRingBytes + kWeightStages * kWeightStageBytes;
static_assert(kSharedBytes <= 227 * 1024);

// The units of a block.
struct Walk {
  __device__ Walk(const TileArgs& all_args, const Shared& all)
      : args(all_args), shared(all), unit(blockIdx.x) {
    Find();
  }
  __device__ bool AtEnd() const { return unit >= shared.unit_begin[args.tokens.num_local]; }
  __device__ void Next() {
    unit += gridDim.x;
    ++step;
    Find();
  }
  __device__ void Find() {
    if (AtEnd()) return;
    int low = expert;
    int high = args.tokens.num_local;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (shared.unit_begin[middle] <= unit ? low : high) = middle;
    }
    expert = low;
    const int unit_rows = (args.matrix.tiles + kUnitTiles - 1) / kUnitTiles;
    const int within = unit - shared.unit_begin[expert];
    first_tile = within % unit_rows * kUnitTiles;
    const int begin = args.groups.offsets[expert];
    const int count = args.groups.offsets[expert + 1] - begin;
    const int parts = (count + kUnitTokens - 1) / kUnitTokens;
    const int width = (count + parts - 1) / parts;
    const int part = within / unit_rows;
    first_token = begin + part * width;
    num_tokens = min(count - part * width, width);
  }

  const TileArgs& args;
  const Shared& shared;
  int unit;
  int step = 0;
  int expert = 0;
  int first_tile;
  int first_token;  // in the grouped order
  int num_tokens;
};

// By one warp.
__device__ inline void CountUnits(const TileArgs& args, int lane, Shared& shared) {
  const int unit_rows = (args.matrix.tiles + kUnitTiles - 1) / kUnitTiles;
  int before = 0;
  for (int first = 0; first < args.tokens.num_local; first += 32) {
    const int expert = first + lane;
    int units = 0;
    if (expert < args.tokens.num_local) {
      const int count = args.groups.offsets[expert + 1] - args.groups.offsets[expert];
      units = (count + kUnitTokens - 1) / kUnitTokens * unit_rows;
    }
    int sum = units;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (expert < args.tokens.num_local) shared.unit_begin[expert + 1] = before + sum;
    before += __shfl_sync(0xFFFFFFFFu, sum, 31);
  }
  if (lane == 0) shared.unit_begin[0] = 0;
}

struct Stage {
  int index = 0;
  uint32_t parity = 0;
  __device__ void Next(int stages) {
    if (++index == stages) {
      index = 0;
      parity ^= 1;
    }
  }
  __device__ void Back(int stages) {
    if (--index < 0) {
      index = stages - 1;
      parity ^= 1;
    }
  }
};

// By the threads that copy token vectors: where a unit's results go.
template <bool gate_up>
__device__ void WriteRows(const TileArgs& args, const Walk& walk, int thread, Shared& shared) {
  const int table = walk.step % kRowTables;
  const int32_t* rows = (gate_up ? args.groups.out_row : args.groups.pair) + walk.first_token;
  for (int i = thread; i < walk.num_tokens; i += kTokenThreads) shared.output[table][i] = rows[i];
  BarrierArrive(&shared.rows_filled[table]);
}

// Stages of all cuts.
struct TokenStages {
  Stage stage[kCuts];
};

template <bool gate_up, int cut>
__device__ void CopyUnit(const TileArgs& args, const Walk& walk, int thread, std::byte* token_ring,
                         Shared& shared, Stage& stage) {
  constexpr int kRowStep = kTokenThreads / 8;
  constexpr int kRows = CutTokens(cut) / kRowStep;  // of a thread, kRowStep apart
  static_assert(kRowStep % 8 == 0);                 // so they are swizzled alike
  const int segment = thread % 8;                   // 16 bytes of a row's 128
  const int first_row = thread / 8;
  const std::byte* base =
      gate_up ? args.tokens.hidden : reinterpret_cast<const std::byte*>(args.activations);
  const int64_t stride = gate_up ? args.tokens.hidden_stride : int64_t{args.matrix.cols} * 2;
  const int32_t* rows = (gate_up ? args.groups.slot : args.groups.out_row) + walk.first_token;
  const int left = walk.num_tokens - first_row;
  int32_t input[kRows];  // offsets in 16 bytes
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    input[i] = i * kRowStep < left
                   ? static_cast<int32_t>(rows[first_row + i * kRowStep] * (stride / 16))
                   : 0;
  }
  const int offset = first_row * kRowBytes + ((segment ^ first_row % 8) << 4);
  const int chunks = args.matrix.groups * kGroupChunks;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    BarrierWait(&shared.tokens_free[cut][stage.index], stage.parity ^ 1);
    const int col = chunk * kChunkCols + segment * 8;
    const bool valid = col < args.matrix.cols;
    const std::byte* from = base + (valid ? col * 2 : 0);
    const uint32_t to = SharedAddress(token_ring) + stage.index * CutStageBytes(cut) + offset;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i * kRowStep < left) {
        CopyAsync16(to + i * kRowStep * kRowBytes, from + int64_t{input[i]} * 16, valid);
      }
    }
    CopyAsyncArrive(&shared.tokens_copied[cut][stage.index]);
    stage.Next(CutStages(cut));
  }
}

template <bool gate_up>
__device__ void CopyTokens(const TileArgs& args, int thread, std::byte* token_ring,
                           Shared& shared) {
  TokenStages stages;
  int last_cut = -1;
  Stage last;  // of the unit before
  for (Walk walk(args, shared); !walk.AtEnd(); walk.Next()) {
    WriteRows<gate_up>(args, walk, thread, shared);
    const int cut = CutOf(walk.num_tokens);
    // Another cut uses the same memory: everything must have been multiplied.
    if (last_cut >= 0 && cut != last_cut) {
      BarrierWait(&shared.tokens_free[last_cut][last.index], last.parity);
    }
    const auto copy = [&]<int c>() {
      CopyUnit<gate_up, c>(args, walk, thread, token_ring, shared, stages.stage[c]);
      last = stages.stage[c];
      last.Back(CutStages(c));
    };
    if (cut == 0) {
      copy.template operator()<0>();
    } else if (cut == 1) {
      copy.template operator()<1>();
    } else {
      copy.template operator()<2>();
    }
    last_cut = cut;
  }
}

// By one thread: what ordinary copies wrote becomes visible to the tensor cores.
__device__ inline void RelayTokens(const TileArgs& args, Shared& shared) {
  TokenStages stages;
  const int chunks = args.matrix.groups * kGroupChunks;
  for (Walk walk(args, shared); !walk.AtEnd(); walk.Next()) {
    const int cut = CutOf(walk.num_tokens);
    Stage stage = cut == 0 ? stages.stage[0] : cut == 1 ? stages.stage[1] : stages.stage[2];
    for (int chunk = 0; chunk < chunks; ++chunk) {
      BarrierWait(&shared.tokens_copied[cut][stage.index], stage.parity);
      FenceProxyAsync();
      BarrierArrive(&shared.tokens_filled[cut][stage.index]);
      stage.Next(CutStages(cut));
    }
    (cut == 0 ? stages.stage[0] : cut == 1 ? stages.stage[1] : stages.stage[2]) = stage;
  }
}

// By one warp.
__device__ inline void FetchWeights(const TileArgs& args, int lane, std::byte* weight_ring,
                                    Shared& shared) {
  Stage stage;
  for (Walk walk(args, shared); !walk.AtEnd(); walk.Next()) {
    const std::byte* weights = args.matrix.data + walk.expert * args.matrix.expert_bytes +
                               (walk.first_tile + lane) * args.matrix.tile_bytes;
    for (int group = 0; group < args.matrix.groups; ++group) {
      uint64_t* filled = &shared.weights_filled[stage.index];
      BarrierWait(&shared.weights_free[stage.index], stage.parity ^ 1);
      if (lane == 0) BarrierArriveExpect(filled, kWeightStageBytes);
      __syncwarp();
      if (lane < kUnitTiles) {
        BulkCopy(weight_ring + stage.index * kWeightStageBytes + lane * kGroupBytes,
                 weights + group * kGroupBytes, kGroupBytes, filled);
      }
      stage.Next(kWeightStages);
    }
  }
}

template <bool gate_up>
__device__ void Fetch(const TileArgs& args, std::byte* token_ring, std::byte* weight_ring,
                      Shared& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp < kTokenThreads / 32) {
    CopyTokens<gate_up>(args, threadIdx.x, token_ring, shared);
  } else if (warp == kRelayWarp) {
    if (lane == 0) RelayTokens(args, shared);
  } else {
    FetchWeights(args, lane, weight_ring, shared);
  }
}

// Where a multiplying warpgroup is in the rings; carried from unit to unit.
struct MultiplyState {
  Stage weight_stage;
  TokenStages token_stages;
};

// Adds to sums[n / 2]: fragments of [64 weight rows, n tokens] over all columns.
template <int n>
__device__ void MultiplyUnit(const TileArgs& args, const std::byte* token_ring,
                             const std::byte* weight_ring, Shared& shared, MultiplyState& state,
                             float (&sums)[n / 2]) {
  constexpr int kCut = CutOf(n);
  Stage& token_stage = state.token_stages.stage[kCut];
  const int warp = threadIdx.x / 32 - 4;
  const int lane = threadIdx.x % 32;
  const std::byte* own = weight_ring + warp * kGroupBytes;
  const auto decode = [&](int stage, int chunk, uint32_t(&a)[4][4]) {
    const std::byte* group = own + stage * kWeightStageBytes;
    DecodeChunk(LoadShared16(group + chunk * kChunkBytes + lane * 16),
                *reinterpret_cast<const uint32_t*>(group + kScalesOffset +
                                                   chunk * kChunkScaleBytes + lane / 4 * 4),
                a);
    WgmmaTouch(a);
  };
  uint32_t a[2][4][4];
  BarrierWait(&shared.weights_filled[state.weight_stage.index], state.weight_stage.parity);
  decode(state.weight_stage.index, 0, a[0]);
  for (int group = 0; group < args.matrix.groups; ++group) {
    const Stage current = state.weight_stage;
    state.weight_stage.Next(kWeightStages);
#pragma unroll
    for (int chunk = 0; chunk < kGroupChunks; ++chunk) {
      BarrierWait(&shared.tokens_filled[kCut][token_stage.index], token_stage.parity);
      const uint64_t b =
          WgmmaDescriptor(SharedAddress(token_ring + token_stage.index * CutStageBytes(kCut)));
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        WgmmaBf16<n>(sums, a[chunk % 2][step], b + 2 * step);
      }
      WgmmaCommit();
      if (chunk + 1 < kGroupChunks) {
        decode(current.index, chunk + 1, a[(chunk + 1) % 2]);
      } else {
        BarrierArrive(&shared.weights_free[current.index]);
        if (group + 1 < args.matrix.groups) {
          BarrierWait(&shared.weights_filled[state.weight_stage.index], state.weight_stage.parity);
          decode(state.weight_stage.index, 0, a[1]);
        }
      }
      WgmmaWaitAll();
      if (lane == 0) BarrierArrive(&shared.tokens_free[kCut][token_stage.index]);
      token_stage.Next(CutStages(kCut));
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[0][step][i] = a[1][step][i];
    }
  }
  WgmmaTouch(sums);
}

// Results of weight rows g and g + 8 of a tile for one token.
template <bool gate_up>
__device__ void StoreToken(const TileArgs& args, int tile, int g, int32_t row, float low,
                           float high) {
  if (gate_up) {
    args.activations[int64_t{row} * (args.matrix.tiles * 8) + tile * 8 + g] =
        __float2bfloat16_rn(SwiGlu(low, high, args.swiglu));
    return;
  }
  const int64_t at = int64_t{row} * args.hidden + tile * kTileRows + g;
  if (args.y.bf16) {
    auto* out = static_cast<__nv_bfloat16*>(args.y.rows) + at;
    out[0] = __float2bfloat16_rn(low);
    out[8] = __float2bfloat16_rn(high);
  } else {
    float* out = static_cast<float*>(args.y.rows) + at;
    out[0] = low;
    out[8] = high;
  }
}

template <bool gate_up, int n>
__device__ void RunUnit(const TileArgs& args, const Walk& walk, const std::byte* token_ring,
                        const std::byte* weight_ring, Shared& shared, MultiplyState& state) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int tile = walk.first_tile + threadIdx.x / 32 - 4;
  const auto* trailer =
      reinterpret_cast<const uint32_t*>(args.matrix.data + walk.expert * args.matrix.expert_bytes +
                                        (tile + 1) * args.matrix.tile_bytes - kTrailerBytes);
  const uint32_t low_row = trailer[g];
  const uint32_t high_row = trailer[g + 8];
  float sums[n / 2] = {};
  MultiplyUnit<n>(args, token_ring, weight_ring, shared, state, sums);
  BarrierWait(&shared.rows_filled[walk.step % kRowTables], walk.step / kRowTables & 1);
  if (tile >= args.matrix.tiles) return;
  const int32_t* output = shared.output[walk.step % kRowTables];
#pragma unroll
  for (int i = 0; i < n / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = i * 8 + t * 2 + j;
      if (token >= walk.num_tokens) continue;
      StoreToken<gate_up>(args, tile, g, output[token],
                          sums[4 * i + j] * TrailerFactor(low_row) + TrailerBias(low_row),
                          sums[4 * i + 2 + j] * TrailerFactor(high_row) + TrailerBias(high_row));
    }
  }
}

template <bool gate_up>
__device__ void MultiplyUnits(const TileArgs& args, const std::byte* token_ring,
                              const std::byte* weight_ring, Shared& shared) {
  MultiplyState state;
  for (Walk walk(args, shared); !walk.AtEnd(); walk.Next()) {
    switch ((walk.num_tokens + kTokenStep - 1) / kTokenStep) {
#define CONCLAVE_CASE(i)                                                                  \
  case i:                                                                                 \
    RunUnit<gate_up, i * kTokenStep>(args, walk, token_ring, weight_ring, shared, state); \
    break;
      CONCLAVE_CASE(1)
      CONCLAVE_CASE(2)
      CONCLAVE_CASE(3)
      CONCLAVE_CASE(4)
      CONCLAVE_CASE(5)
      CONCLAVE_CASE(6)
      CONCLAVE_CASE(7)
      CONCLAVE_CASE(8)
      CONCLAVE_CASE(9)
      CONCLAVE_CASE(10)
#undef CONCLAVE_CASE
    }
  }
}

template <bool gate_up>
__global__ void __launch_bounds__(kThreads, 1) TileKernel(const __grid_constant__ TileArgs args) {
  extern __shared__ std::byte memory[];
  std::byte* aligned = memory + ((1024 - SharedAddress(memory) % 1024) % 1024);
  Shared& shared = *reinterpret_cast<Shared*>(aligned);
  std::byte* token_ring = aligned + kHeaderBytes;
  std::byte* weight_ring = token_ring + kTokenRingBytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWeightStages; ++i) {
      BarrierInit(&shared.weights_filled[i], 1);
      BarrierInit(&shared.weights_free[i], kMultiplyGroups * kWarpgroup);
    }
    for (int cut = 0; cut < kCuts; ++cut) {
      for (int i = 0; i < CutStages(cut); ++i) {
        BarrierInit(&shared.tokens_copied[cut][i], kTokenThreads);
        BarrierInit(&shared.tokens_filled[cut][i], 1);
        BarrierInit(&shared.tokens_free[cut][i], kUnitTiles);
      }
    }
    for (int i = 0; i < kRowTables; ++i) BarrierInit(&shared.rows_filled[i], kTokenThreads);
    BarrierInitFence();
  }
  PdlWait();
  if (threadIdx.x < 32) CountUnits(args, threadIdx.x, shared);
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    GiveRegisters<56>();
    Fetch<gate_up>(args, token_ring, weight_ring, shared);
  } else {
    TakeRegisters<152>();
    MultiplyUnits<gate_up>(args, token_ring, weight_ring, shared);
  }
}

template <bool gate_up>
void Launch(const TileArgs& args, int blocks, cudaStream_t stream) {
  cudaFuncSetAttribute(TileKernel<gate_up>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       kSharedBytes);
  LaunchDependent(TileKernel<gate_up>, {dim3(blocks), dim3(kThreads), kSharedBytes}, stream, args);
}

}  // namespace conclave::kernels::cuda::tile

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_TILE_CUH_
