#include "worker/metered_communicator.h"

#include <chrono>

namespace conclave::worker {

template <typename Call>
absl::Status MeteredCommunicator::Measure(const Call& call) {
  for (int r = 0; r < size(); ++r) bytes_to_[r] -= inner_->bytes_sent_to()[r];
  const double waited_before = inner_->seconds_waited();
  const auto start = std::chrono::steady_clock::now();
  absl::Status status = call();
  if (!inner_->asynchronous()) {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  for (int r = 0; r < size(); ++r) bytes_to_[r] += inner_->bytes_sent_to()[r];
  seconds_waited_ += inner_->seconds_waited() - waited_before;
  return status;
}

absl::Status MeteredCommunicator::AllToAll(const void* send, void* recv, int64_t block_bytes) {
  return Measure([&] { return inner_->AllToAll(send, recv, block_bytes); });
}

absl::Status MeteredCommunicator::AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                                            std::span<const int64_t> send_offsets, void* recv,
                                            std::span<const int64_t> recv_bytes,
                                            std::span<const int64_t> recv_offsets) {
  return Measure([&] {
    return inner_->AllToAllV(send, send_bytes, send_offsets, recv, recv_bytes, recv_offsets);
  });
}

absl::Status MeteredCommunicator::AllReduceSum(kernels::Tensor data) {
  return Measure([&] { return inner_->AllReduceSum(data); });
}

absl::Status MeteredCommunicator::ReduceScatterSum(kernels::Tensor data,
                                                   std::span<const int64_t> row_begin,
                                                   kernels::Tensor out) {
  return Measure([&] { return inner_->ReduceScatterSum(data, row_begin, out); });
}

absl::Status MeteredCommunicator::AllGatherRows(kernels::Tensor data,
                                                std::span<const int64_t> row_begin) {
  return Measure([&] { return inner_->AllGatherRows(data, row_begin); });
}

}  // namespace conclave::worker
