#ifndef CONCLAVE_KERNELS_CUDA_PEER_EXCHANGE_H_
#define CONCLAVE_KERNELS_CUDA_PEER_EXCHANGE_H_

// One exchange of small blocks between GPUs that can write to each other's memory, in one launch:
// every rank writes its block for a peer into the peer's window, raises a flag there, and waits for
// the flags of its own.
//
// A window, the same on every rank (`part`: what one of kPeerParts thread blocks moves of a block):
//
//   | flags [parts][ranks] u32 | rounds [parts] u32 | ... | bytes [2][parts][ranks][part_bytes] |
//
// The two halves take turns, round by round: who writes a half for the second time has been told by
// every peer, in the round between, that it is through with the first.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace conclave::kernels::cuda {

inline constexpr int kMaxPeers = 8;
inline constexpr int kPeerParts = 32;

struct PeerWindows {
  int rank = 0;
  int ranks = 0;
  // Of each rank, as this GPU sees it; zeroed before the first exchange.
  std::byte* windows[kMaxPeers] = {};
  int64_t part_bytes = 0;  // a multiple of 16
  // In page-locked host memory: other than 0, nobody waits any more.
  const volatile int* aborted = nullptr;
};

// Bytes of a window in which blocks of up to `block_bytes` fit, and what `part_bytes` then is.
int64_t PeerWindowBytes(int ranks, int64_t block_bytes);
int64_t PeerPartBytes(int64_t block_bytes);

// What goes to and comes from each rank, by its number; this rank's own block is copied.
struct PeerBlocks {
  const void* send[kMaxPeers] = {};
  void* recv[kMaxPeers] = {};
  int64_t send_bytes[kMaxPeers] = {};
  int64_t recv_bytes[kMaxPeers] = {};
};

// Every rank calls the same exchanges in the same order. No block exceeds what the windows are for.
// After an abort it ends at once and received blocks hold garbage.
void ExchangeWithPeers(const PeerWindows& windows, const PeerBlocks& blocks, cudaStream_t stream);

// data [values], f32 or bf16, becomes the sum of all ranks' data, in the order of the ranks, added
// in float32 and rounded once.
void SumWithPeers(const PeerWindows& windows, DType dtype, void* data, int64_t values,
                  cudaStream_t stream);

}  // namespace conclave::kernels::cuda

#endif  // CONCLAVE_KERNELS_CUDA_PEER_EXCHANGE_H_
