#ifndef CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_SHARE_CUH_
#define CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_SHARE_CUH_

// Which part of the work a block of the stream kernels does: it sorts the pairs by expert in its
// shared memory, and walks through its share of the units.

#include "kernels/cuda/expert_stream.h"
#include "kernels/cuda/expert_tokens.cuh"

namespace conclave::kernels::cuda::stream {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int kMaxStages = 8;
inline constexpr int kExpertsPerLane = kMaxStreamExperts / 32;

struct Shared {
  uint64_t filled[kMaxStages];  // the stage's tile is there
  SourceBegins sources;
  int32_t num_active;
  int16_t key[kMaxStreamPairs];     // local expert of a pair, -1: none
  int16_t sorted[kMaxStreamPairs];  // pairs by expert
  int16_t local_index[kMaxStreamExperts];
  int32_t count[kMaxStreamExperts];
  // Of experts with tokens:
  int16_t expert[kMaxStreamExperts];
  int16_t first[kMaxStreamExperts];  // of `sorted`
  int16_t tokens[kMaxStreamExperts];
  // Of the expert's tokens, taken so many at a time. A unit is one of these times a tile.
  int32_t turn_begin[kMaxStreamExperts + 1];
};
struct ActiveCounts {
  int32_t pairs, turns, active;
};

__device__ inline ActiveCounts Add(const ActiveCounts& a, const ActiveCounts& b) {
  return {a.pairs + b.pairs, a.turns + b.turns, a.active + b.active};
}

// By one warp: lists the experts that have tokens.
__device__ inline void ListActive(const TokenArgs& tokens, int tokens_at_a_time, int lane,
                                  Shared& shared) {
  ActiveCounts own[kExpertsPerLane];
  ActiveCounts sum = {0, 0, 0};
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const int local = lane * kExpertsPerLane + i;
    const int count = local < tokens.num_local ? shared.count[local] : 0;
    own[i] = {count, (count + tokens_at_a_time - 1) / tokens_at_a_time, count > 0};
    sum = Add(sum, own[i]);
  }
  ActiveCounts before = sum;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const ActiveCounts other = {__shfl_up_sync(kAllLanes, before.pairs, offset),
                                __shfl_up_sync(kAllLanes, before.turns, offset),
                                __shfl_up_sync(kAllLanes, before.active, offset)};
    if (lane >= offset) before = Add(before, other);
  }
  if (lane == 31) {
    shared.num_active = before.active;
    shared.turn_begin[before.active] = before.turns;
  }
  before = {before.pairs - sum.pairs, before.turns - sum.turns, before.active - sum.active};
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    if (own[i].pairs > 0) {
      shared.expert[before.active] = static_cast<int16_t>(lane * kExpertsPerLane + i);
      shared.first[before.active] = static_cast<int16_t>(before.pairs);
      shared.tokens[before.active] = static_cast<int16_t>(own[i].pairs);
      shared.turn_begin[before.active] = before.turns;
    }
    before = Add(before, own[i]);
  }
}

// By one warp: the same for up to 32 pairs, in one go. Experts stand in the order of their first
// pairs. All ids of a single source's slots are read at once, valid or not.
__device__ inline void SortFewPairs(const TokenArgs& tokens, int tokens_at_a_time, int lane,
                                    Shared& shared) {
  int32_t id = -1;
  if (tokens.num_sources == 1 && lane < tokens.max_copies * tokens.k) {
    id = ExpertId(tokens, tokens.first_slot[0] + lane / tokens.k, lane % tokens.k);
  }
  ReadSources(tokens, lane, shared.sources);
  __syncwarp();
  const int pairs = shared.sources.begin[tokens.num_sources] * tokens.k;
  if (tokens.num_sources > 1 && lane < pairs) {
    const CopyPlace place = PlaceOfCopy(tokens, shared.sources, lane / tokens.k);
    id = ExpertId(tokens, place.slot, lane % tokens.k);
  }
  const bool known = lane < pairs && id >= 0 && id < tokens.num_experts;
  const int local = known ? shared.local_index[id] : -1;
  const uint32_t same = __match_any_sync(kAllLanes, local);
  const uint32_t before = (1u << lane) - 1;
  const bool leads = local >= 0 && (same & before) == 0;
  const int count = __popc(same);
  int32_t first = leads ? count : 0;
  int32_t turns = leads ? (count + tokens_at_a_time - 1) / tokens_at_a_time : 0;
  const int32_t own_turns = turns;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int32_t other_first = __shfl_up_sync(kAllLanes, first, offset);
    const int32_t other_turns = __shfl_up_sync(kAllLanes, turns, offset);
    if (lane >= offset) {
      first += other_first;
      turns += other_turns;
    }
  }
  if (leads) first -= count;
  const uint32_t leaders = __ballot_sync(kAllLanes, leads);
  const int active = __popc(leaders & before);
  if (leads) {
    shared.expert[active] = static_cast<int16_t>(local);
    shared.first[active] = static_cast<int16_t>(first);
    shared.tokens[active] = static_cast<int16_t>(count);
    shared.turn_begin[active] = turns - own_turns;
  }
  if (lane == 31) {
    shared.num_active = __popc(leaders);
    shared.turn_begin[__popc(leaders)] = turns;
  }
  first = __shfl_sync(kAllLanes, first, __ffs(same) - 1);
  if (local >= 0) shared.sorted[first + __popc(same & before)] = static_cast<int16_t>(lane);
}

// By all threads, after `local_index` is there; ends with a barrier.
template <int threads, int tokens_at_a_time>
__device__ void SortPairs(const TokenArgs& tokens, Shared& shared) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (tokens.max_copies * tokens.k <= 32) {
    if (warp == 0) SortFewPairs(tokens, tokens_at_a_time, lane, shared);
    __syncthreads();
    return;
  }
  if (warp == 0) ReadSources(tokens, lane, shared.sources);
  for (int i = threadIdx.x; i < kMaxStreamExperts; i += threads) shared.count[i] = 0;
  __syncthreads();
  const int pairs = shared.sources.begin[tokens.num_sources] * tokens.k;
  for (int pair = threadIdx.x; pair < pairs; pair += threads) {
    const CopyPlace place = PlaceOfCopy(tokens, shared.sources, pair / tokens.k);
    const int32_t id = ExpertId(tokens, place.slot, pair % tokens.k);
    const int local = id >= 0 && id < tokens.num_experts ? shared.local_index[id] : -1;
    shared.key[pair] = static_cast<int16_t>(local);
    if (local >= 0) atomicAdd(&shared.count[local], 1);
  }
  __syncthreads();
  if (warp == 0) ListActive(tokens, tokens_at_a_time, lane, shared);
  __syncthreads();
  for (int a = warp; a < shared.num_active; a += threads / 32) {
    int at = shared.first[a];
    for (int begin = 0; begin < pairs; begin += 32) {
      const int pair = begin + lane;
      const bool match = pair < pairs && shared.key[pair] == shared.expert[a];
      const uint32_t mask = __ballot_sync(kAllLanes, match);
      if (match) {
        shared.sorted[at + __popc(mask & ((1u << lane) - 1))] = static_cast<int16_t>(pair);
      }
      at += __popc(mask);
    }
  }
  __syncthreads();
}

// Units of one expert and the same tokens: tiles `tile`, tile + interleave, ...
struct Run {
  int expert;
  int first_token;  // in `sorted`
  int num_tokens;
  int tile;
  int end_tile;
};

// The runs of a block.
class Share {
 public:
  __device__ Share(const Shared& shared, int tiles, int tokens_at_a_time, int interleave)
      : shared_(shared),
        tiles_(tiles),
        tokens_at_a_time_(tokens_at_a_time),
        interleave_(interleave) {
    const unsigned units = Begin(shared.num_active);
    const unsigned shares = gridDim.x / interleave;
    const unsigned share = blockIdx.x / interleave;
    unit_ = static_cast<int>(units * share / shares + blockIdx.x % interleave);
    end_ = static_cast<int>(units * (share + 1) / shares);
    int high = shared.num_active;
    while (high - active_ > 1) {
      const int middle = (active_ + high) / 2;
      (Begin(middle) <= unit_ ? active_ : high) = middle;
    }
  }
  __device__ bool Next(Run& run) {
    if (unit_ >= end_) return false;
    while (unit_ >= Begin(active_ + 1)) ++active_;
    const int within = unit_ - Begin(active_);
    const int skipped = within / tiles_ * tokens_at_a_time_;
    run.expert = shared_.expert[active_];
    run.first_token = shared_.first[active_] + skipped;
    run.num_tokens = min(shared_.tokens[active_] - skipped, tokens_at_a_time_);
    run.tile = within % tiles_;
    run.end_tile = min(tiles_, run.tile + end_ - unit_);
    unit_ += (run.end_tile - run.tile + interleave_ - 1) / interleave_ * interleave_;
    return true;
  }

 private:
  __device__ int Begin(int active) const { return shared_.turn_begin[active] * tiles_; }

  const Shared& shared_;
  const int tiles_;
  const int tokens_at_a_time_;
  const int interleave_;
  int unit_;
  int end_;
  int active_ = 0;
};

}  // namespace conclave::kernels::cuda::stream

#endif  // CONCLAVE_KERNELS_CUDA_EXPERT_STREAM_SHARE_CUH_
