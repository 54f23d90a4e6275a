#ifndef CONCLAVE_WORKER_NCCL_COMMUNICATOR_H_
#define CONCLAVE_WORKER_NCCL_COMMUNICATOR_H_

// The Communicator of GPU ranks, over NCCL. Nothing of CUDA or NCCL is in this header.
//
// - Its calls enqueue on one stream, that of the ops, and return: results are there for what is
//   enqueued after them. Memory is device memory. Sums take f32 and bf16.
// - After creation nothing is allocated, and nothing waits for the stream or for a peer: every call
//   can be captured into a CUDA graph (in thread-local capture mode) and replayed. Graphs are
//   destroyed before the communicator, whose destructor waits for them.
// - A failure reaches the rank between two calls: a thread of the communicator's own asks NCCL for
//   it, and ends what waits on the stream, as Abort does. So what was enqueued completes, with
//   garbage; Check() then tells, and is to be asked before a step's results are believed. A peer
//   that is merely silent is found by nobody here: Abort is for those whose heartbeats stop.
// - Blocks of up to `direct_bytes` do not go through NCCL where the GPUs can write to each other's
//   memory: one kernel of ours writes them there (kernels/cuda/peer_exchange.h).
// - seconds_waited() is always 0: what waits is the stream. bytes_sent_to() counts calls, not
//   replays of graphs that captured them.
// - Without Abort, the destructor waits until the peers have taken what was sent to them.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/communicator.h"

namespace conclave::worker {

struct NcclOptions {
  void* stream = nullptr;  // cudaStream_t, borrowed
  int device = 0;          // CUDA ordinal, the stream's
  // Device memory for sums; the same on every rank. Larger sums go in pieces. Replaced by the least
  // that works where it is smaller.
  int64_t scratch_bytes = int64_t{32} << 20;
  // Of a block between two ranks; the same on every rank. 0: NCCL alone.
  int64_t direct_bytes = 0;
  absl::Duration connect_timeout = absl::Seconds(60);  // for all ranks to be connected
  // Asked now and then while connecting: true gives up. May be empty.
  std::function<bool()> cancelled;
};

// Connects the ranks of `group` (a name unique within the epoch) through `rendezvous`, and runs a
// first exchange. FAILED_PRECONDITION when NCCL cannot be loaded, RESOURCE_EXHAUSTED when the
// scratch memory is not there, else UNAVAILABLE.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const std::string& group, int rank,
                                                          int size, Rendezvous& rendezvous,
                                                          const NcclOptions& options);

// Makes NCCL open its sockets on this interface, unless the environment has NCCL_SOCKET_IFNAME.
// NCCL reads it once: call it before anything else of this header and before threads are started.
void SetNcclInterface(const std::string& interface);

// Version of the library of this process, e.g. "2.28.9". FAILED_PRECONDITION where none can be
// loaded: "nccl_missing: ..." or "nccl_too_old: ...".
absl::StatusOr<std::string> NcclVersion();

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_NCCL_COMMUNICATOR_H_
