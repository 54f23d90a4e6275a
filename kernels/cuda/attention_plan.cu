// One block for each list.
//
// Decode: a piece is at most `longest` KV blocks of one row, the smallest `longest` for which all
// pieces fit at once on the card. Prefill: a tile is PrefillTokens rows of one run, cut where it
// has more than its even share of all keys to read; longest first, so that the last are short.

#include <algorithm>

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBuckets = 128;

struct PlanParams {
  StepView view;
  AttentionWorkspace workspace;
  int window;
  int decode_pieces;
  int decode_min_blocks[2];  // full, sliding layers
  int prefill_tokens;
  int prefill_min_steps;
  int prefill_shares;  // into which all prefill work is divided
  int bucket_shift;
};

struct PlanShared {
  int of_run[kMaxAttentionRuns];  // decode: KV blocks; prefill: tiles of the runs before
  int buckets[kBuckets];
  int warp_sums[kWarps];
  int result;
  int partials;
  unsigned long long work;
};

__device__ int CeilDivide(int a, int b) { return (a + b - 1) / b; }

__device__ int WarpSumInt(int value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Sum of the values of the threads before this one; `total` of all.
__device__ int ExclusiveScan(int value, PlanShared& shared, int& total) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int inclusive = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int before = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane >= offset) inclusive += before;
  }
  __syncthreads();
  if (lane == 31) shared.warp_sums[warp] = inclusive;
  __syncthreads();
  int base = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) base = total;
    total += shared.warp_sums[w];
  }
  return base + inclusive - value;
}

__device__ int FirstVisible(int position, int window, bool sliding) {
  return sliding ? max(0, position - window + 1) : 0;
}

__device__ int TableOf(const RunView& run, bool sliding) {
  return sliding ? run.sliding_offset - run.sliding_first : run.full_offset;
}

// The smallest piece, in KV blocks, with which no more than `limit` pieces come out; `longest` if
// there is none. Each warp tries a size.
__device__ int PieceBlocks(PlanShared& shared, int runs, int smallest, int longest, int limit) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int low = min(smallest, longest);
  int high = longest;  // never tried: taken if all others fail
  while (low < high) {
    const int stride = CeilDivide(high - low, kWarps);
    const int candidate = low + warp * stride;
    int pieces = 0;
    for (int run = lane; run < runs; run += 32) {
      pieces += CeilDivide(shared.of_run[run], candidate);
    }
    pieces = WarpSumInt(pieces);
    __syncthreads();
    if (threadIdx.x == 0) shared.result = kWarps;
    __syncthreads();
    if (lane == 0 && candidate < high && pieces <= limit) atomicMin(&shared.result, warp);
    __syncthreads();
    const int first = shared.result;
    if (first < kWarps) {
      high = low + first * stride;
      if (first > 0) low += (first - 1) * stride + 1;
    } else {
      low = min(high, low + (CeilDivide(high - low, stride) - 1) * stride + 1);
    }
  }
  return high;
}

__device__ void WriteDecodeItems(const PlanParams& p, const RunView& run, bool sliding, int blocks,
                                 int pieces, AttentionItem* items, int at) {
  const int first = FirstVisible(run.start_position, p.window, sliding) / kKvBlockTokens;
  const int per_piece = CeilDivide(blocks, pieces);
  for (int piece = 0; piece < pieces; ++piece) {
    const int begin = (first + piece * per_piece) * kKvBlockTokens;
    items[at + piece] = {.row = run.first_row,
                         .rows = 1,
                         .position = run.start_position,
                         .key_begin = begin,
                         .key_end = min(begin + per_piece * kKvBlockTokens, run.start_position + 1),
                         .table = TableOf(run, sliding),
                         .pieces = pieces,
                         .piece = piece,
                         .partial = at};
  }
}

__device__ void PlanDecode(const PlanParams& p, bool sliding, PlanShared& shared) {
  const int runs = p.view.runs;
  int mine = 1;
  for (int i = threadIdx.x; i < runs; i += kThreads) {
    const RunView run = p.view.run[i];
    const int first = FirstVisible(run.start_position, p.window, sliding) / kKvBlockTokens;
    shared.of_run[i] = run.rows == 1 ? run.start_position / kKvBlockTokens + 1 - first : 0;
    mine = max(mine, shared.of_run[i]);
  }
  if (threadIdx.x == 0) shared.result = 1;
  __syncthreads();
  atomicMax(&shared.result, mine);
  __syncthreads();
  const int longest = shared.result;
  __syncthreads();
  const int smallest =
      max(p.decode_min_blocks[sliding ? 1 : 0], CeilDivide(longest, kMaxDecodePieces));
  const int piece_blocks = PieceBlocks(shared, runs, smallest, longest, p.decode_pieces);

  AttentionItem* items = p.workspace.items[sliding ? kDecodeSliding : kDecodeFull];
  int count = 0;
  for (int begin = 0; begin < runs; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const int blocks = i < runs ? shared.of_run[i] : 0;
    int pieces = CeilDivide(blocks, piece_blocks);
    if (pieces > 1) pieces = CeilDivide(blocks, CeilDivide(blocks, pieces));
    int total = 0;
    const int at = count + ExclusiveScan(pieces, shared, total);
    if (pieces > 0) WriteDecodeItems(p, p.view.run[i], sliding, blocks, pieces, items, at);
    count += total;
  }
  if (threadIdx.x == 0) p.workspace.counts[sliding ? kDecodeSliding : kDecodeFull] = count;
}

// Tile `index` of all as an item of one piece.
__device__ AttentionItem PrefillTile(const PlanParams& p, bool sliding, const PlanShared& shared,
                                     int index) {
  int low = 0;  // the last run that begins at or before `index`
  int high = p.view.runs - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (shared.of_run[middle] <= index) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const RunView run = p.view.run[low];
  const int first = (index - shared.of_run[low]) * p.prefill_tokens;
  const int position = run.start_position + first;
  const int rows = min(p.prefill_tokens, run.rows - first);
  const int begin = FirstVisible(position, p.window, sliding);
  return {.row = run.first_row + first,
          .rows = rows,
          .position = position,
          .key_begin = begin / kKvBlockTokens * kKvBlockTokens,
          .key_end = position + rows,
          .table = TableOf(run, sliding),
          .pieces = 1};
}

__device__ int Steps(const AttentionItem& item) {
  return CeilDivide(item.key_end - item.key_begin, kPrefillKeys);
}

struct Cut {
  int pieces;
  int steps;  // of each piece but the last
};
__device__ Cut CutTile(const AttentionItem& item, int target) {
  const int steps = Steps(item);
  const int per_piece = CeilDivide(steps, CeilDivide(steps, target));
  return {CeilDivide(steps, per_piece), per_piece};
}

// Longest first.
__device__ int BucketOf(const PlanParams& p, int steps) {
  return kBuckets - 1 - min(steps >> p.bucket_shift, kBuckets - 1);
}

// Fills shared.of_run and returns the number of tiles.
__device__ int CountTiles(const PlanParams& p, PlanShared& shared) {
  int tiles = 0;
  for (int begin = 0; begin < p.view.runs; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const int rows = i < p.view.runs ? p.view.run[i].rows : 0;
    int total = 0;
    const int before =
        ExclusiveScan(rows > 1 ? CeilDivide(rows, p.prefill_tokens) : 0, shared, total);
    if (i < p.view.runs) shared.of_run[i] = tiles + before;
    tiles += total;
  }
  return tiles;
}

__device__ void PlanPrefill(const PlanParams& p, bool sliding, PlanShared& shared) {
  if (threadIdx.x == 0) {
    shared.work = 0;
    shared.partials = 0;
  }
  if (threadIdx.x < kBuckets) shared.buckets[threadIdx.x] = 0;
  const int tiles = CountTiles(p, shared);
  __syncthreads();
  unsigned long long steps = 0;
  for (int i = threadIdx.x; i < tiles; i += kThreads) {
    steps += Steps(PrefillTile(p, sliding, shared, i));
  }
  if (steps > 0) atomicAdd(&shared.work, steps);
  __syncthreads();
  const int share = static_cast<int>((shared.work + p.prefill_shares - 1) / p.prefill_shares);
  const int target = max(p.prefill_min_steps, share);

  for (int i = threadIdx.x; i < tiles; i += kThreads) {
    const Cut cut = CutTile(PrefillTile(p, sliding, shared, i), target);
    atomicAdd(&shared.buckets[BucketOf(p, cut.steps)], cut.pieces);
  }
  __syncthreads();
  const int size = threadIdx.x < kBuckets ? shared.buckets[threadIdx.x] : 0;
  int count = 0;
  const int first = ExclusiveScan(size, shared, count);
  if (threadIdx.x < kBuckets) shared.buckets[threadIdx.x] = first;
  __syncthreads();

  const AttentionList list = sliding ? kPrefillSliding : kPrefillFull;
  for (int i = threadIdx.x; i < tiles; i += kThreads) {
    AttentionItem item = PrefillTile(p, sliding, shared, i);
    const Cut cut = CutTile(item, target);
    const int at = atomicAdd(&shared.buckets[BucketOf(p, cut.steps)], cut.pieces);
    item.pieces = cut.pieces;
    if (cut.pieces > 1) item.partial = atomicAdd(&shared.partials, cut.pieces);
    const int begin = item.key_begin;
    const int end = item.key_end;
    for (int piece = 0; piece < cut.pieces; ++piece) {
      item.piece = piece;
      item.key_begin = begin + piece * cut.steps * kPrefillKeys;
      item.key_end = min(end, item.key_begin + cut.steps * kPrefillKeys);
      p.workspace.items[list][at + piece] = item;
    }
  }
  if (threadIdx.x == 0) p.workspace.counts[list] = count;
}

__global__ void __launch_bounds__(kThreads) PlanKernel(PlanParams p) {
  __shared__ PlanShared shared;
  PdlTrigger();
  PdlWait();
  const bool sliding = blockIdx.x % 2 == 1;
  if (blockIdx.x < 2) {
    PlanDecode(p, sliding, shared);
  } else {
    PlanPrefill(p, sliding, shared);
  }
}

}  // namespace

bool IsFastShape(const AttentionShape& shape) {
  if (shape.head_dim != kFastHeadDim || shape.heads % shape.kv_heads != 0) return false;
  const int group = shape.heads / shape.kv_heads;
  return group == 1 || group == 2 || group == 4 || group == 8;
}

int DecodeWarps(const AttentionTuning& tuning, int runs) {
  if (tuning.decode_warps != 0) return tuning.decode_warps;
  constexpr int kFewRuns = 48;
  return runs <= kFewRuns ? 8 : 4;
}

int DecodePieces(const AttentionShape& shape, const AttentionTuning& tuning, int runs) {
  const int blocks =
      NumMultiprocessors() * (kDecodeWarpsPerMultiprocessor / DecodeWarps(tuning, runs));
  return std::max(1, blocks / shape.kv_heads);
}

int DecodeItems(const AttentionShape& shape, const AttentionTuning& tuning, const StepView& view,
                bool sliding) {
  const int keys =
      sliding ? std::min(shape.window + kKvBlockTokens - 1, view.max_context) : view.max_context;
  const int min_blocks = sliding ? tuning.sliding_min_blocks : tuning.full_min_blocks;
  const int blocks = (keys + kKvBlockTokens - 1) / kKvBlockTokens;
  const int64_t all_pieces =
      int64_t{view.runs} * std::max((blocks + min_blocks - 1) / min_blocks, 1);
  const int pieces = DecodePieces(shape, tuning, view.runs);
  return static_cast<int>(std::min<int64_t>(all_pieces, std::max(view.runs, pieces)));
}

// Shares of all prefill work of which every multiprocessor takes `waves`.
int PrefillShares(const AttentionShape& shape, int waves) {
  return std::max(1, NumMultiprocessors() * waves / shape.kv_heads);
}

// Cutting tiles into shares adds at most as many items as there are shares.
int PrefillItems(const AttentionShape& shape, int rows, int runs) {
  return rows / PrefillTokens(shape) + std::min(rows, runs) +
         PrefillShares(shape, kMaxPrefillWaves);
}

// A tile of s > 1 shares comes in less than 2 s pieces.
int PrefillPieces(const AttentionShape& shape) {
  return 2 * PrefillShares(shape, kMaxPrefillWaves);
}

void LaunchPlan(const AttentionShape& shape, const AttentionTuning& tuning, const StepView& view,
                const AttentionWorkspace& workspace, cudaStream_t stream) {
  PlanParams params = {.view = view,
                       .workspace = workspace,
                       .window = shape.window,
                       .decode_pieces = DecodePieces(shape, tuning, view.runs),
                       .decode_min_blocks = {tuning.full_min_blocks, tuning.sliding_min_blocks},
                       .prefill_tokens = PrefillTokens(shape),
                       .prefill_min_steps = tuning.prefill_min_steps,
                       .prefill_shares = PrefillShares(shape, tuning.prefill_waves),
                       .bucket_shift = 0};
  while (view.max_context / kPrefillKeys >> params.bucket_shift >= kBuckets) ++params.bucket_shift;
  const unsigned lists = view.max_run_rows > 1 ? 4 : 2;
  LaunchDependent(PlanKernel, {.grid = dim3(lists), .block = dim3(kThreads)}, stream, params);
}

}  // namespace conclave::kernels::cuda
