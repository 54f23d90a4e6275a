#ifndef CONCLAVE_WORKER_PEER_GROUP_H_
#define CONCLAVE_WORKER_PEER_GROUP_H_

// The GPUs of one host that write into each other's memory (NVLink or PCIe), a rank's process each:
// windows of their memory, opened by all others through CUDA's IPC.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/peer_exchange.h"
#include "kernels/tensor.h"
#include "worker/communicator.h"

namespace conclave::worker {

class PeerGroup {
 public:
  // For blocks of up to `block_bytes`. The same call on every rank; null on all of them where any
  // cannot open another's window: on several hosts (a rank is also taken at its word when NCCL's
  // NCCL_HOSTID says so), without peer access, or with more than kMaxPeers ranks.
  static absl::StatusOr<std::unique_ptr<PeerGroup>> Connect(const std::string& group, int rank,
                                                            int size, Rendezvous& rendezvous,
                                                            int64_t block_bytes,
                                                            absl::Time deadline);
  // Exchanges that still wait for a peer end, as after Abort. On the device of Connect.
  ~PeerGroup();
  PeerGroup(const PeerGroup&) = delete;
  PeerGroup& operator=(const PeerGroup&) = delete;

  const kernels::cuda::PeerWindows& windows() const { return windows_; }
  int64_t block_bytes() const { return block_bytes_; }
  // Ends exchanges that wait, now and from now on. Any thread.
  void Abort();

 private:
  PeerGroup() = default;
  absl::Status Allocate(int rank, int size, int64_t block_bytes);
  // Whether all windows could be opened.
  bool Open(const std::vector<std::string>& cards);

  kernels::Buffer own_;
  kernels::Buffer abort_;  // one int, page-locked
  std::vector<void*> opened_;
  kernels::cuda::PeerWindows windows_;
  int64_t block_bytes_ = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_PEER_GROUP_H_
