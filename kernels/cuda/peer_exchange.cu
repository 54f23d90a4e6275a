// Few bytes, so latency decides: one launch, no copy engine, and a flag for each thread block, so
// that none waits for another of its own GPU. Blocks are pushed, not pulled: a write over NVLink
// needs no answer, and the one round trip is the flag's.

#include <algorithm>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/peer_exchange.h"

namespace conclave::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kVectorBytes = 16;
constexpr int kFlags = kPeerParts * kMaxPeers;
constexpr int64_t kHeaderBytes = int64_t{kFlags + kPeerParts} * sizeof(uint32_t);
static_assert(kHeaderBytes % kVectorBytes == 0);
// Looks at its flag before it asks the host, over PCIe, whether to go on.
constexpr int kLooks = 256;

__device__ uint32_t* FlagOf(std::byte* window, int part, int source) {
  return reinterpret_cast<uint32_t*>(window) + part * kMaxPeers + source;
}
__device__ uint32_t* RoundOf(std::byte* window, int part) {
  return reinterpret_cast<uint32_t*>(window) + kFlags + part;
}
__device__ std::byte* BytesOf(const PeerWindows& w, int owner, uint32_t round, int part,
                              int source) {
  const int64_t index = (int64_t{round % 2} * kPeerParts + part) * w.ranks + source;
  return w.windows[owner] + kHeaderBytes + index * w.part_bytes;
}

__device__ void Raise(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ uint32_t Look(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// The part of `bytes` that a thread block moves: whole vectors, but for the end.
struct Part {
  int64_t begin = 0;
  int64_t size = 0;
};
__device__ Part PartOf(int64_t bytes, int part) {
  const int64_t vectors = (bytes + kVectorBytes - 1) / kVectorBytes;
  const int64_t each = (vectors + kPeerParts - 1) / kPeerParts * kVectorBytes;
  const int64_t begin = min(part * each, bytes);
  return {begin, min(each, bytes - begin)};
}

__device__ void Copy(const void* from, void* to, int64_t bytes) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  const uintptr_t bits = reinterpret_cast<uintptr_t>(source) | reinterpret_cast<uintptr_t>(target);
  int64_t done = 0;
  if (bits % kVectorBytes == 0) {
    const int64_t vectors = bytes / kVectorBytes;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < vectors; i += kThreads) {
      reinterpret_cast<uint4*>(target)[i] = __ldcg(reinterpret_cast<const uint4*>(source) + i);
    }
    done = vectors * kVectorBytes;
  }
  for (int64_t i = done + threadIdx.x; i < bytes; i += kThreads) target[i] = source[i];
}

// Tells the peers of what this thread block wrote into their windows, and waits for theirs.
__device__ void Meet(const PeerWindows& w, uint32_t round) {
  const int part = static_cast<int>(blockIdx.x);
  const int peer = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (peer < w.ranks && peer != w.rank) {
    __threadfence_system();
    Raise(FlagOf(w.windows[peer], part, w.rank), round);
    const uint32_t* flag = FlagOf(w.windows[w.rank], part, peer);
    // Rounds wrap around.
    for (int looks = 1; static_cast<int32_t>(Look(flag) - round) < 0; ++looks) {
      if (looks % kLooks == 0 && *w.aborted != 0) break;
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    ExchangeKernel(const __grid_constant__ PeerWindows w, const __grid_constant__ PeerBlocks b) {
  PdlTrigger();
  PdlWait();
  const int part = static_cast<int>(blockIdx.x);
  uint32_t* const rounds = RoundOf(w.windows[w.rank], part);
  const uint32_t round = *rounds + 1;
  for (int i = 1; i < w.ranks; ++i) {
    const int peer = (w.rank + i) % w.ranks;
    const Part mine = PartOf(b.send_bytes[peer], part);
    Copy(static_cast<const std::byte*>(b.send[peer]) + mine.begin,
         BytesOf(w, peer, round, part, w.rank), mine.size);
  }
  if (b.send[w.rank] != b.recv[w.rank]) {
    const Part own = PartOf(b.send_bytes[w.rank], part);
    Copy(static_cast<const std::byte*>(b.send[w.rank]) + own.begin,
         static_cast<std::byte*>(b.recv[w.rank]) + own.begin, own.size);
  }
  Meet(w, round);
  for (int i = 1; i < w.ranks; ++i) {
    const int peer = (w.rank + i) % w.ranks;
    const Part theirs = PartOf(b.recv_bytes[peer], part);
    Copy(BytesOf(w, w.rank, round, part, peer),
         static_cast<std::byte*>(b.recv[peer]) + theirs.begin, theirs.size);
  }
  if (threadIdx.x == 0) *rounds = round;
}

__device__ void AddTo(float (&sum)[4], const uint4& value) {
  sum[0] += __uint_as_float(value.x);
  sum[1] += __uint_as_float(value.y);
  sum[2] += __uint_as_float(value.z);
  sum[3] += __uint_as_float(value.w);
}
__device__ void AddTo(float (&sum)[kVec], const uint4& value) {
  float add[kVec];
  Unpack(value, add);
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] += add[i];
}
__device__ uint4 Rounded(const float (&sum)[4]) {
  return {__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]),
          __float_as_uint(sum[3])};
}
__device__ uint4 Rounded(const float (&sum)[kVec]) { return Pack(sum); }

// kValues in a vector: 4 of f32, 8 of bf16. `data` is whole vectors.
template <int kValues>
__global__ void __launch_bounds__(kThreads)
    SumKernel(const __grid_constant__ PeerWindows w, std::byte* data, int64_t bytes) {
  PdlTrigger();
  PdlWait();
  const int part = static_cast<int>(blockIdx.x);
  uint32_t* const rounds = RoundOf(w.windows[w.rank], part);
  const uint32_t round = *rounds + 1;
  const Part mine = PartOf(bytes, part);
  for (int i = 1; i < w.ranks; ++i) {
    const int peer = (w.rank + i) % w.ranks;
    Copy(data + mine.begin, BytesOf(w, peer, round, part, w.rank), mine.size);
  }
  Meet(w, round);
  for (int64_t i = threadIdx.x; i < mine.size / kVectorBytes; i += kThreads) {
    auto* const own = reinterpret_cast<uint4*>(data + mine.begin) + i;
    float sum[kValues];
#pragma unroll
    for (int v = 0; v < kValues; ++v) sum[v] = -0.0f;
#pragma unroll
    for (int rank = 0; rank < kMaxPeers; ++rank) {
      if (rank >= w.ranks) break;
      const auto* const theirs =
          reinterpret_cast<const uint4*>(BytesOf(w, w.rank, round, part, rank)) + i;
      AddTo(sum, rank == w.rank ? *own : __ldcg(theirs));
    }
    *own = Rounded(sum);
  }
  if (threadIdx.x == 0) *rounds = round;
}

}  // namespace

int64_t PeerPartBytes(int64_t block_bytes) {
  const int64_t vectors = (block_bytes + kVectorBytes - 1) / kVectorBytes;
  return (vectors + kPeerParts - 1) / kPeerParts * kVectorBytes;
}

int64_t PeerWindowBytes(int ranks, int64_t block_bytes) {
  return kHeaderBytes + 2 * int64_t{kPeerParts} * ranks * PeerPartBytes(block_bytes);
}

void ExchangeWithPeers(const PeerWindows& windows, const PeerBlocks& blocks, cudaStream_t stream) {
  LaunchDependent(ExchangeKernel, {dim3(kPeerParts), dim3(kThreads)}, stream, windows, blocks);
}

void SumWithPeers(const PeerWindows& windows, DType dtype, void* data, int64_t values,
                  cudaStream_t stream) {
  const int64_t bytes = values * SizeOf(dtype);
  const auto kernel = dtype == DType::kF32 ? SumKernel<4> : SumKernel<kVec>;
  LaunchDependent(kernel, {dim3(kPeerParts), dim3(kThreads)}, stream, windows,
                  static_cast<std::byte*>(data), bytes);
}

}  // namespace conclave::kernels::cuda
