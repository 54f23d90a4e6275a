#ifndef CONCLAVE_WORKER_COMMUNICATOR_H_
#define CONCLAVE_WORKER_COMMUNICATOR_H_

// Collectives over a fixed group of ranks on device memory. Two implementations: Gloo (CPU) and
// NCCL (CUDA). Every rank of the group makes the same calls in the same order.
//
// Obligations of an implementation:
//  1. Calls come from one thread, the step thread; Abort may come from any.
//  2. A failure (peer gone, time-out, Abort) is UNAVAILABLE, on this and on every later call; no
//     exception leaves. Where calls only enqueue, a failure shows on a later call and in Check.
//  3. Sums are ordered: ascending rank, whatever arrives first; all ranks get the same bits.
//  4. Neither a call nor the stream it enqueued on hangs 2 s after Abort, nor longer than the
//     time-out it was made with (Gloo; NCCL has none).
//  5. A rank's share of its own data never crosses the wire.

#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/tensor.h"

namespace conclave::worker {

// Small values by name, shared by the ranks of one epoch. Thread-safe.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual absl::Status Put(const std::string& key, const std::string& value) = 0;
  // Waits for the value. DEADLINE_EXCEEDED after `timeout`, ABORTED when the epoch ended.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;  // within the group
  virtual int size() const = 0;

  // Block i of `send` goes to rank i; block i of `recv` comes from rank i; blocks are equal.
  virtual absl::Status AllToAll(const void* send, void* recv, int64_t block_bytes) = 0;

  // Block i: bytes and offset at index i of the spans, [size].
  virtual absl::Status AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                                 std::span<const int64_t> send_offsets, void* recv,
                                 std::span<const int64_t> recv_bytes,
                                 std::span<const int64_t> recv_offsets) = 0;

  // data = ordered sum over the ranks, in its own dtype: f32 or f64 (Gloo); f32, or bf16 added in
  // float32 and rounded once (NCCL).
  virtual absl::Status AllReduceSum(kernels::Tensor data) = 0;

  // `data` [rows, cols] is cut by `row_begin` [size + 1]; `out` gets the ordered sum of this rank's
  // rows. Dtypes as above.
  virtual absl::Status ReduceScatterSum(kernels::Tensor data, std::span<const int64_t> row_begin,
                                        kernels::Tensor out) = 0;

  // `data` [rows, cols]: each rank has filled its rows [row_begin[r], row_begin[r + 1]); afterwards
  // all have all. Any dtype.
  virtual absl::Status AllGatherRows(kernels::Tensor data, std::span<const int64_t> row_begin) = 0;

  // True: calls enqueue on a stream and return; the time they take on the host says nothing.
  virtual bool asynchronous() const { return false; }

  // The first failure so far. Results that a stream brought are believed only when this is OK once
  // they are there.
  virtual absl::Status Check() { return absl::OkStatus(); }

  // Any thread: makes a running call and all later ones fail.
  virtual void Abort() = 0;

  // Bytes this rank has sent to each rank of the group so far, [size]; none to itself. Read, as
  // what follows, by the thread of the calls.
  virtual std::span<const int64_t> bytes_sent_to() const = 0;
  int64_t bytes_sent() const {
    const std::span<const int64_t> bytes = bytes_sent_to();
    return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  }

  // Seconds so far that calls were blocked until the first bytes of every peer were there: peers
  // were late, or (64 KiB at most) on their way.
  virtual double seconds_waited() const = 0;
};

struct GlooOptions {
  std::string interface;  // e.g. lo, eth0
  std::string hostname;   // address the peers reach this rank at; empty: the interface's own
  // Of one collective. A rank that is late by more than half of it fails the others.
  absl::Duration timeout = absl::Seconds(30);
  absl::Duration connect_timeout = absl::Seconds(30);  // for all ranks to be connected
  // Asked now and then while connecting, from another thread: true gives up. May be empty.
  std::function<bool()> cancelled;
};

// Connects the ranks of `group` (a name unique within the epoch) through `rendezvous`.
// INVALID_ARGUMENT when interface or hostname are not this machine's, else UNAVAILABLE. Makes the
// process ignore SIGPIPE, which gloo's writes to a dead peer would raise.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const std::string& group, int rank,
                                                          int size, Rendezvous& rendezvous,
                                                          const GlooOptions& options);

// Rendezvous inside one process, for tests and benchmarks with one thread per rank.
std::unique_ptr<Rendezvous> MakeLocalRendezvous();

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_COMMUNICATOR_H_
