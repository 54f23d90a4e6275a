#ifndef CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_
#define CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_

// What both exchange modes share: who computes which expert, the slot layout, buffers, statistics.

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/placement.h"
#include "worker/communicator.h"
#include "worker/expert_exchange.h"

namespace conclave::worker {

// The rank that computes `source`'s copies for an expert: itself when it holds it, else one of the
// holders, so that the sources share out the replicas.
int ComputingRank(std::span<const int> holders, int source);

class ExpertExchangeBase : public ExpertExchange {
 public:
  ExpertExchangeBase(const model::Config& config, Communicator& world, kernels::Ops& ops,
                     const ExchangeOptions& options);

  int64_t max_output_rows() const override { return int64_t{world_.size()} * max_rows_; }
  const ExchangeStats& stats() const override { return stats_; }

 protected:
  absl::Status AllocateShared(const model::Placement& placement);
  // Device memory for the life of the exchange.
  absl::StatusOr<kernels::Tensor> Allocate(kernels::DType dtype, int64_t rows, int64_t cols);

  // Packs `normed` into send_, block_slots apart, and keeps send_index and counts for Combine.
  absl::Status Pack(int layer, kernels::Tensor normed, const kernels::Routing& routing,
                    int64_t block_slots);
  // The fields of received slots, the layer's local indices; counts and positions are the caller's.
  kernels::ExpertTokens ReceivedTokens(int layer) const;

  // Runs collectives, adding their time and wire bytes to the statistics.
  template <typename Call>
  absl::Status Collective(const Call& call) {
    const int64_t bytes_before = world_.bytes_sent();
    const double waited_before = world_.seconds_waited();
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = call();
    stats_.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    stats_.wire_bytes += world_.bytes_sent() - bytes_before;
    stats_.wait_seconds += world_.seconds_waited() - waited_before;
    return status;
  }

  int64_t partial_row_bytes() const {
    return int64_t{hidden_size_} * kernels::SizeOf(ops_.partial_dtype());
  }
  kernels::Tensor send_index() const { return send_index_.Rows(0, rows_); }

  Communicator& world_;
  kernels::Ops& ops_;
  const int max_rows_;
  const int hidden_size_;
  const int num_experts_;
  const kernels::SlotLayout layout_;
  ExchangeStats stats_;

  int64_t rows_ = 0;             // of the last Dispatch
  kernels::Tensor send_;         // u8 [world * (1 + max_rows), slot_bytes]
  kernels::Tensor recv_;         // likewise
  kernels::Tensor returned_;     // partial [world * max_rows, H]
  kernels::Tensor send_counts_;  // i32 [world, 1]

 private:
  kernels::Tensor send_index_;      // i32 [max_rows, world]
  kernels::Tensor rank_of_expert_;  // i32 [layers, experts]
  kernels::Tensor local_index_;     // i32 [layers, experts]
  std::vector<kernels::Buffer> memory_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_
