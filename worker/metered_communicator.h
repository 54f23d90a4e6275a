#ifndef CONCLAVE_WORKER_METERED_COMMUNICATOR_H_
#define CONCLAVE_WORKER_METERED_COMMUNICATOR_H_

// A communicator that counts the time and the bytes of the calls made through it.

#include <cstdint>
#include <span>
#include <vector>

#include "worker/communicator.h"

namespace conclave::worker {

// Borrows `inner`, which others may use too.
class MeteredCommunicator final : public Communicator {
 public:
  explicit MeteredCommunicator(Communicator& inner) : inner_(&inner), bytes_to_(inner.size()) {}

  // Goes on with another communicator of the same group, counting from 0.
  void Rebind(Communicator& inner) { *this = MeteredCommunicator(inner); }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  absl::Status AllToAll(const void* send, void* recv, int64_t block_bytes) override;
  absl::Status AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                         std::span<const int64_t> send_offsets, void* recv,
                         std::span<const int64_t> recv_bytes,
                         std::span<const int64_t> recv_offsets) override;
  absl::Status AllReduceSum(kernels::Tensor data) override;
  absl::Status ReduceScatterSum(kernels::Tensor data, std::span<const int64_t> row_begin,
                                kernels::Tensor out) override;
  absl::Status AllGatherRows(kernels::Tensor data, std::span<const int64_t> row_begin) override;
  bool asynchronous() const override { return inner_->asynchronous(); }
  absl::Status Check() override { return inner_->Check(); }
  void Abort() override { inner_->Abort(); }
  // Through this object alone.
  std::span<const int64_t> bytes_sent_to() const override { return bytes_to_; }
  double seconds() const { return seconds_; }  // 0 where calls only enqueue
  double seconds_waited() const override { return seconds_waited_; }

 private:
  template <typename Call>
  absl::Status Measure(const Call& call);

  Communicator* inner_;
  std::vector<int64_t> bytes_to_;  // [size]
  double seconds_ = 0;
  double seconds_waited_ = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_METERED_COMMUNICATOR_H_
