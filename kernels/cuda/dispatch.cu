// Copies of a destination lie in ascending order of their rows, so a copy's place is the number of
// earlier rows that go there too: one block per destination counts them, 1,024 rows at a time. Then
// one block per row and destination copies what belongs there. No atomics: the same routing gives
// the same buffer.

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kPlaceThreads = 1024;
constexpr int kCopyThreads = 128;

__device__ std::byte* Slot(const PackArguments& p, int destination, int64_t index) {
  return p.send + (destination * p.block_slots + index) * p.layout.slot_bytes;
}

// -1: the row has no expert there (padding of a recorded step).
__device__ int RankOf(const PackArguments& p, int32_t expert) {
  return expert < 0 ? -1 : p.tables.rank_of_expert[expert];
}

__device__ bool GoesTo(const PackArguments& p, int64_t row, int destination) {
  for (int j = 0; j < p.k; ++j) {
    if (RankOf(p, p.expert_ids[row * p.k + j]) == destination) return true;
  }
  return false;
}

__global__ void __launch_bounds__(kPlaceThreads)
    PlaceKernel(const __grid_constant__ PackArguments p) {
  __shared__ int warp_counts[kPlaceThreads / 32];
  PdlTrigger();
  PdlWait();
  const int destination = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int placed = 0;  // rows before this pass
  for (int first = 0; first < p.rows; first += kPlaceThreads) {
    const int64_t row = first + static_cast<int>(threadIdx.x);
    const bool goes = row < p.rows && GoesTo(p, row, destination);
    const unsigned mask = __ballot_sync(0xFFFFFFFFu, goes);
    if (lane == 0) warp_counts[warp] = __popc(mask);
    __syncthreads();
    int index = placed + __popc(mask & ((1u << lane) - 1));
    for (int i = 0; i < kPlaceThreads / 32; ++i) {
      if (i < warp) index += warp_counts[i];
      placed += warp_counts[i];
    }
    if (row < p.rows) p.send_index[row * p.tables.world + destination] = goes ? index : -1;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    p.counts[destination] = placed;
    if (p.tables.copies != nullptr) p.tables.copies[destination] += placed;
  }
  // The header: the count, the rest zero, since all of it goes over the wire.
  auto* header = reinterpret_cast<int32_t*>(Slot(p, destination, 0));
  for (int i = static_cast<int>(threadIdx.x); i < p.layout.slot_bytes / 4; i += kPlaceThreads) {
    header[i] = i == 0 ? placed : 0;
  }
}

__global__ void __launch_bounds__(kCopyThreads)
    CopyKernel(const __grid_constant__ PackArguments p) {
  PdlTrigger();
  PdlWait();
  const int64_t row = blockIdx.x;
  const int destination = static_cast<int>(blockIdx.y);
  const int32_t index = p.send_index[row * p.tables.world + destination];
  if (index < 0) return;
  std::byte* slot = Slot(p, destination, 1 + int64_t{index});
  const auto* from = reinterpret_cast<const uint4*>(p.normed + row * p.hidden);
  auto* to = reinterpret_cast<uint4*>(slot + p.layout.hidden_offset);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < p.hidden / kVec; i += kCopyThreads) to[i] = from[i];
  auto* ids = reinterpret_cast<int32_t*>(slot + p.layout.expert_ids_offset);
  auto* weights = reinterpret_cast<float*>(slot + p.layout.weights_offset);
  for (int j = thread; j < p.k; j += kCopyThreads) {
    const int32_t id = p.expert_ids[row * p.k + j];
    ids[j] = RankOf(p, id) == destination ? id : -1;
    weights[j] = p.weights[row * p.k + j];
  }
  const int used = static_cast<int>(p.layout.weights_offset) / 4 + p.k;
  for (int i = used + thread; i < p.layout.slot_bytes / 4; i += kCopyThreads) {
    reinterpret_cast<int32_t*>(slot)[i] = 0;
  }
}

}  // namespace

void PackDispatch(const PackArguments& arguments, cudaStream_t stream) {
  const int world = arguments.tables.world;
  LaunchDependent(PlaceKernel, {dim3(world), dim3(kPlaceThreads)}, stream, arguments);
  if (arguments.rows == 0) return;
  LaunchDependent(CopyKernel, {dim3(arguments.rows, world), dim3(kCopyThreads)}, stream, arguments);
}

}  // namespace conclave::kernels::cuda
