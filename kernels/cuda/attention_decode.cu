// Decode: one token row, the (up to 8) query heads of one KV head, a piece of the row's keys.
//
// Bound by the bytes of keys and values, each used once, so they go from memory straight to the
// registers of mma.sync; there is no shared memory on the way. Lane 4 g + t of a warp loads
//   keys    g and g + 8 of a KV block, 16-byte chunks t and t + 4,
//   values  2t, 2t + 1, 2t + 8, 2t + 9, chunk g,
// both whole 32-byte sectors. The sums run over a permuted order of the head's values (the same for
// q and k), and the rows of V^T are permuted likewise, so that the chunks are operands as they are:
//   S [heads, keys] = Q K^T      q is the 16-row operand, heads 8-15 are zero
//   O^T [d, heads] += V^T P^T    V^T is the 16-row operand, S as it comes is the other
// A warp takes every kWarps-th KV block of the piece; warps, then pieces, are put together in
// order.
//
// Where the rows are still to be rotated, this kernel does it: a lane holds both values of its
// pairs. The row's own key and value take the place of what was loaded from the cache, and are
// written there. Then nothing but these and q depends on the kernel before, and the first KV block
// of each warp is on its way while that still runs.

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rope_rotate.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kChunk = 8;  // values of a uint4
constexpr int kRowBytes = kFastHeadDim * 2;
constexpr int kBlockBytes = kKvBlockTokens * kRowBytes;  // of one KV head
constexpr int kPaddedRow = kFastHeadDim + 4;
constexpr int kCombineThreads = kDecodeHeads * kFastHeadDim / 4;

// Streaming 16-byte loads: read once, kept out of L1. LoadOnceIf gives 0 unless `wanted`.
__device__ uint4 LoadOnce(const char* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ uint4 LoadOnceIf(bool wanted, const char* from) {
  uint4 v;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %5, 0;\n"
      "mov.u32 %0, 0;\n"
      "mov.u32 %1, 0;\n"
      "mov.u32 %2, 0;\n"
      "mov.u32 %3, 0;\n"
      "@wanted ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<uint32_t>(wanted)));
  return v;
}

struct WarpState {
  float o[4][4];  // [i] = d 8g + 2i, heads 2t and 2t + 1, then d 8g + 2i + 1
  float maximum;  // of head g, in units of s
  float weight;   // of head g, this lane's keys
};

template <int kWarps>
union DecodeShared {
  struct {
    float o[kWarps][kDecodeHeads][kPaddedRow];
    float maximum[kWarps][kDecodeHeads];
    float weight[kWarps][kDecodeHeads];
  } warps;
  float factor[kMaxDecodePieces][kDecodeHeads];
};

// Ids of this warp's KV blocks, 32 at a time, the next 32 on their way.
template <int kWarps>
class BlockIds {
 public:
  __device__ BlockIds(const int32_t* table, int blocks)
      : table_(table + threadIdx.x / 32), left_(blocks - static_cast<int>(threadIdx.x / 32)) {
    ids_ = Load(0);
    next_ids_ = Load(32);
  }

  // To be called for index 0, 1, 2, ...
  __device__ int Get(int index) {
    if (index > 0 && index % 32 == 0) {
      ids_ = next_ids_;
      next_ids_ = Load(index + 32);
    }
    return __shfl_sync(kAllLanes, ids_, index % 32);
  }

 private:
  __device__ int Load(int index) const {
    const int at = (index + static_cast<int>(threadIdx.x % 32)) * kWarps;
    return at < left_ ? table_[at] : 0;
  }

  const int32_t* table_;
  int left_;
  int ids_;
  int next_ids_;
};

__device__ void LoadKeys(const char* block, uint4 (&keys)[4]) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    keys[i] = LoadOnce(block + (g + i / 2 * 8) * kRowBytes + (t + i % 2 * 4) * 16);
  }
}

// Values of positions outside [begin, end) are 0: the cache may hold anything there.
__device__ void LoadValues(const char* block, int position, int begin, int end,
                           uint4 (&values)[4]) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = 2 * t + i % 2 + i / 2 * 8;
    const bool seen = position + key >= begin && position + key < end;
    values[i] = LoadOnceIf(seen, block + key * kRowBytes + g * 16);
  }
}

// s[0..3]: head g and keys 2t, 2t + 1, 2t + 8, 2t + 9.
__device__ void Logits(const uint4 (&query)[2], const uint4 (&keys)[4], float (&s)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float d[4] = {0, 0, 0, 0};
    const uint4& low = keys[2 * half];
    const uint4& high = keys[2 * half + 1];
    MmaBf16(d, query[0].x, 0, query[0].y, 0, low.x, low.y);
    MmaBf16(d, query[0].z, 0, query[0].w, 0, low.z, low.w);
    MmaBf16(d, query[1].x, 0, query[1].y, 0, high.x, high.y);
    MmaBf16(d, query[1].z, 0, query[1].w, 0, high.z, high.w);
    s[2 * half] = d[0];
    s[2 * half + 1] = d[1];
  }
}

// s becomes the weights; state is brought to the new maximum.
__device__ void Softmax(float c, float (&s)[4], WarpState& state) {
  const float largest = QuadMax(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])));
  if (__any_sync(kAllLanes, largest > state.maximum)) {
    const float maximum = fmaxf(state.maximum, largest);
    const float factor = Exp2((state.maximum - maximum) * c);
    state.maximum = maximum;
    state.weight *= factor;
    const int t = threadIdx.x % 4;
    const float factor0 = __shfl_sync(kAllLanes, factor, 8 * t);
    const float factor1 = __shfl_sync(kAllLanes, factor, 8 * t + 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      state.o[i][0] *= factor0;
      state.o[i][1] *= factor1;
      state.o[i][2] *= factor0;
      state.o[i][3] *= factor1;
    }
  }
  const float shift = state.maximum * c;
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = Exp2(s[i] * c - shift);
  state.weight += (s[0] + s[1]) + (s[2] + s[3]);
}

__device__ void AddValues(const float (&p)[4], const uint4 (&values)[4], WarpState& state) {
  const uint32_t b0 = PackBf16(p[0], p[1]);
  const uint32_t b1 = PackBf16(p[2], p[3]);
  const auto* v0 = reinterpret_cast<const uint32_t*>(&values[0]);
  const auto* v1 = reinterpret_cast<const uint32_t*>(&values[1]);
  const auto* v2 = reinterpret_cast<const uint32_t*>(&values[2]);
  const auto* v3 = reinterpret_cast<const uint32_t*>(&values[3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    MmaBf16(state.o[i], __byte_perm(v0[i], v1[i], 0x5410), __byte_perm(v0[i], v1[i], 0x7632),
            __byte_perm(v2[i], v3[i], 0x5410), __byte_perm(v2[i], v3[i], 0x7632), b0, b1);
  }
}

// Of a decode row: what the cache lacks, in the lanes' places (LoadKeys, LoadValues).
struct OwnRow {
  uint4 key_low;   // chunk t
  uint4 key_high;  // chunk t + 4
  uint4 value;     // chunk g
};

__device__ OwnRow LoadOwn(const AttentionParams& p, const AttentionItem& item, int kv_head,
                          const float4 (&angles)[kVec / 2]) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const auto* row = reinterpret_cast<const uint4*>(
      p.qkv + int64_t{item.row} * p.shape.row_values() + (p.shape.heads + kv_head) * kFastHeadDim);
  const auto* value = row + p.shape.kv_heads * (kFastHeadDim / kChunk);
  OwnRow own = {row[t], row[t + 4], value[g]};
  RotatePairs(angles, own.key_low, own.key_high);
  return own;
}

// `place`: of the row's own position in the KV block that is in `keys` and `values`.
__device__ void PutOwn(const OwnRow& own, int place, uint4 (&keys)[4], uint4 (&values)[4]) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (place == g + i * 8) {
      keys[2 * i] = own.key_low;
      keys[2 * i + 1] = own.key_high;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (place == 2 * t + i % 2 + i / 2 * 8) values[i] = own.value;
  }
}

// By one warp; `offset` as in AttendPiece.
__device__ void WriteOwn(const AttentionParams& p, const OwnRow& own, int kv_head, int64_t offset,
                         int place) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int64_t at = offset + kv_head * kBlockBytes + place * kRowBytes;
  auto* key = reinterpret_cast<uint4*>(reinterpret_cast<char*>(p.cache.keys) + at);
  auto* value = reinterpret_cast<uint4*>(reinterpret_cast<char*>(p.cache.values) + at);
  if (g == 0) {
    key[t] = own.key_low;
    key[t + 4] = own.key_high;
  }
  if (t == 0) value[g] = own.value;
}

template <int kWarps, bool kRotate>
__device__ void AttendPiece(const AttentionParams& p, const AttentionItem& item, int kv_head,
                            WarpState& state) {
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int group = p.shape.heads / p.shape.kv_heads;
  const int blocks = (item.key_end - item.key_begin + kKvBlockTokens - 1) / kKvBlockTokens;
  BlockIds<kWarps> ids(p.view.blocks + item.table + item.key_begin / kKvBlockTokens, blocks);
  float4 angles[kVec / 2];
  if (kRotate) {
    const auto* from = reinterpret_cast<const float4*>(
        p.angles + int64_t{item.position} * (kFastHeadDim / 2) + t * kVec);
#pragma unroll
    for (int i = 0; i < kVec / 2; ++i) angles[i] = from[i];
  }
  const int64_t stride = int64_t{p.shape.kv_heads} * kBlockBytes;
  const char* all_keys = reinterpret_cast<const char*>(p.cache.keys) + kv_head * kBlockBytes;
  const char* all_values = reinterpret_cast<const char*>(p.cache.values) + kv_head * kBlockBytes;
  const int begin = max(item.key_begin, FirstSeen(p, item.position));
  const int end = item.key_end;
  const float c = p.scale * kLog2E;

  int position = item.key_begin + warp * kKvBlockTokens;
  if (warp >= blocks) {
    if (kRotate) PdlWait();
    return;
  }
  uint4 keys[4];
  uint4 values[4];
  int64_t offset = ids.Get(0) * stride;
  LoadKeys(all_keys + offset, keys);
  LoadValues(all_values + offset, position, begin, end, values);
  if (kRotate) PdlWait();
  uint4 query[2] = {};
  if (g < group) {
    const auto* row = reinterpret_cast<const uint4*>(
        p.qkv + int64_t{item.row} * p.shape.row_values() + (kv_head * group + g) * kFastHeadDim);
    query[0] = row[t];
    query[1] = row[t + 4];
    if (kRotate) RotatePairs(angles, query[0], query[1]);
  }
  OwnRow own;
  if (kRotate) own = LoadOwn(p, item, kv_head, angles);
  for (int i = 1, block = warp; block < blocks; ++i, block += kWarps) {
    if (kRotate && position + kKvBlockTokens > item.position) {
      PutOwn(own, item.position - position, keys, values);
      WriteOwn(p, own, kv_head, offset, item.position - position);
    }
    float s[4];
    Logits(query, keys, s);
    const bool more = block + kWarps < blocks;
    const int next_position = position + kWarps * kKvBlockTokens;
    if (more) {
      offset = ids.Get(i) * stride;
      LoadKeys(all_keys + offset, keys);
    }
    if (position < begin || position + kKvBlockTokens > end) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = position + 2 * t + j % 2 + j / 2 * 8;
        if (key < begin || key >= end) s[j] = -INFINITY;
      }
    }
    Softmax(c, s, state);
    AddValues(s, values, state);
    if (more) LoadValues(all_values + offset, next_position, begin, end, values);
    position = next_position;
  }
}

// Sums of four values of one head, relative to `maximum` (times c).
struct HeadSums {
  float4 o;
  float maximum;
  float weight;
};

template <int kWarps>
__device__ HeadSums CombineWarps(const DecodeShared<kWarps>& shared, int head, int d, float c) {
  HeadSums sums = {make_float4(0, 0, 0, 0), shared.warps.maximum[0][head], 0};
#pragma unroll
  for (int w = 1; w < kWarps; ++w)
    sums.maximum = fmaxf(sums.maximum, shared.warps.maximum[w][head]);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float factor = Exp2((shared.warps.maximum[w][head] - sums.maximum) * c);
    const float4 o = *reinterpret_cast<const float4*>(&shared.warps.o[w][head][d]);
    sums.o.x += o.x * factor;
    sums.o.y += o.y * factor;
    sums.o.z += o.z * factor;
    sums.o.w += o.w * factor;
    sums.weight += shared.warps.weight[w][head] * factor;
  }
  sums.maximum *= c;
  return sums;
}

// `partials`: the first of the tile's pieces; they lie `stride` floats apart. The 16 threads of a
// head share its factors. What the first pieces hold is asked for at once: most tiles have no more.
__device__ HeadSums CombinePieces(const float* partials, int64_t stride, int pieces, int head,
                                  int d, float (*factors)[kDecodeHeads]) {
  constexpr int kMaxima = kDecodeHeads * kFastHeadDim;
  constexpr int kWeights = kMaxima + kDecodeHeads;
  constexpr int kLanes = 16;
  constexpr int kAhead = 16;
  const int sub = threadIdx.x % kLanes;
  const float* maxima = partials + kMaxima + head;
  const float* weights = partials + kWeights + head;
  const float* o = partials + head * kFastHeadDim + d;
  const float first_maximum = sub < pieces ? __ldcg(maxima + sub * stride) : -INFINITY;
  const float first_weight = sub < pieces ? __ldcg(weights + sub * stride) : 0;
  float4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    ahead[i] = i < pieces ? __ldcg(reinterpret_cast<const float4*>(o + i * stride))
                          : make_float4(0, 0, 0, 0);
  }
  HeadSums sums = {make_float4(0, 0, 0, 0), first_maximum, 0};
  for (int i = sub + kLanes; i < pieces; i += kLanes) {
    sums.maximum = fmaxf(sums.maximum, __ldcg(maxima + i * stride));
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    sums.maximum = fmaxf(sums.maximum, __shfl_xor_sync(kAllLanes, sums.maximum, offset));
  }
  factors[sub][head] = Exp2(first_maximum - sums.maximum);  // 0 past the last piece
  sums.weight = factors[sub][head] * first_weight;
  for (int i = sub + kLanes; i < pieces; i += kLanes) {
    const float factor = Exp2(__ldcg(maxima + i * stride) - sums.maximum);
    factors[i][head] = factor;
    sums.weight += factor * __ldcg(weights + i * stride);
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    sums.weight += __shfl_xor_sync(kAllLanes, sums.weight, offset);
  }
  __syncwarp();
  const auto add = [&](const float4& values, float factor) {
    sums.o.x += values.x * factor;
    sums.o.y += values.y * factor;
    sums.o.z += values.z * factor;
    sums.o.w += values.w * factor;
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) add(ahead[i], factors[i][head]);
#pragma unroll 8
  for (int i = kAhead; i < pieces; ++i) {
    add(__ldcg(reinterpret_cast<const float4*>(o + i * stride)), factors[i][head]);
  }
  return sums;
}

__device__ void StoreOutput(const AttentionParams& p, const AttentionItem& item, int kv_head,
                            int head, int d, const HeadSums& sums) {
  const int group = p.shape.heads / p.shape.kv_heads;
  if (head >= group) return;
  const int query_head = kv_head * group + head;
  const float inverse = 1 / (sums.weight + Exp2(SinkLog2(p, query_head) - sums.maximum));
  const uint2 packed = {PackBf16(sums.o.x * inverse, sums.o.y * inverse),
                        PackBf16(sums.o.z * inverse, sums.o.w * inverse)};
  __nv_bfloat16* to = p.out + (int64_t{item.row} * p.shape.heads + query_head) * kFastHeadDim + d;
  *reinterpret_cast<uint2*>(to) = packed;
}

template <int kWarps>
__device__ void StoreWarp(const WarpState& state, DecodeShared<kWarps>& shared) {
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const float weight = QuadSum(state.weight);
#pragma unroll
  for (int head = 0; head < 2; ++head) {
    float* to = &shared.warps.o[warp][2 * t + head][kChunk * g];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = state.o[i][head];
      to[2 * i + 1] = state.o[i][2 + head];
    }
  }
  if (t == 0) {
    shared.warps.maximum[warp][g] = state.maximum;
    shared.warps.weight[warp][g] = weight;
  }
}

template <int kWarps, bool kRotate>
__global__ void __launch_bounds__(kWarps * 32, kDecodeWarpsPerMultiprocessor / kWarps)
    DecodeKernel(AttentionParams p) {
  __shared__ __align__(16) DecodeShared<kWarps> shared;
  __shared__ bool last;
  PdlTrigger();
  if (!kRotate) PdlWait();
  const AttentionList list = p.cache.sliding ? kDecodeSliding : kDecodeFull;
  const int kv_head = blockIdx.x;
  // Both at once: the list has room for all that are launched.
  const int count = p.workspace.counts[list];
  const AttentionItem item = LoadItem(p.workspace.items[list] + blockIdx.y);
  if (static_cast<int>(blockIdx.y) >= count) {
    if (kRotate) PdlWait();
    return;
  }
  const int group = p.shape.heads / p.shape.kv_heads;
  const float c = p.scale * kLog2E;
  WarpState state = {};
  state.maximum =
      SinkLog2(p, kv_head * group + min(static_cast<int>(threadIdx.x % 32 / 4), group - 1)) / c;
  AttendPiece<kWarps, kRotate>(p, item, kv_head, state);
  StoreWarp(state, shared);
  __syncthreads();

  const bool combines = threadIdx.x < kCombineThreads;
  const int head = threadIdx.x / 16 % kDecodeHeads;
  const int d = threadIdx.x % 16 * 4;
  HeadSums sums = CombineWarps(shared, head, d, c);
  if (item.pieces == 1) {
    if (combines) StoreOutput(p, item, kv_head, head, d, sums);
    return;
  }
  const int64_t stride = p.shape.kv_heads * PartialFloats(kDecodeHeads);
  float* partials =
      p.workspace.decode_partials + item.partial * stride + kv_head * PartialFloats(kDecodeHeads);
  if (combines) {
    float* mine = partials + item.piece * stride;
    *reinterpret_cast<float4*>(mine + head * kFastHeadDim + d) = sums.o;
    if (d == 0) {
      mine[kDecodeHeads * kFastHeadDim + head] = sums.maximum;
      mine[kDecodeHeads * (kFastHeadDim + 1) + head] = sums.weight;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    last = ArriveLast(p.workspace.decode_arrivals + item.partial * p.shape.kv_heads + kv_head,
                      item.pieces);
  }
  __syncthreads();
  if (!last || !combines) return;
  sums = CombinePieces(partials, stride, item.pieces, head, d, shared.factor);
  StoreOutput(p, item, kv_head, head, d, sums);
}

template <bool kRotate>
void Launch(const AttentionParams& params, const dim3& grid, int warps, cudaStream_t stream) {
  if (warps == 8) {
    LaunchDependent(DecodeKernel<8, kRotate>, {.grid = grid, .block = dim3(256)}, stream, params);
  } else {
    LaunchDependent(DecodeKernel<4, kRotate>, {.grid = grid, .block = dim3(128)}, stream, params);
  }
}

}  // namespace

void LaunchDecode(const AttentionParams& params, const AttentionTuning& tuning,
                  cudaStream_t stream) {
  const int items = DecodeItems(params.shape, tuning, params.view, params.cache.sliding);
  const dim3 grid(params.shape.kv_heads, items);
  const int warps = DecodeWarps(tuning, params.view.runs);
  if (params.angles != nullptr) {
    Launch<true>(params, grid, warps, stream);
  } else {
    Launch<false>(params, grid, warps, stream);
  }
}

}  // namespace conclave::kernels::cuda
