#ifndef CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_
#define CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_

// What both exchange modes share: the slot layout, buffers; and what each has of its own:
// statistics.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/placement.h"
#include "worker/communicator.h"
#include "worker/expert_exchange.h"
#include "worker/metered_communicator.h"

namespace conclave::worker {

// Device memory of a rank's exchanges, for the largest step.
struct ExchangeBuffers {
  static absl::StatusOr<std::shared_ptr<const ExchangeBuffers>> Create(
      const model::Config& config, const model::Placement& placement, const Communicator& world,
      kernels::Ops& ops, const ExchangeOptions& options);

  kernels::Tensor send;             // u8 [world * (1 + max_rows), slot_bytes]
  kernels::Tensor recv;             // likewise
  kernels::Tensor returned;         // partial [world * max_rows, H]
  kernels::Tensor counts;           // i32 [2 * world, 1], the two below, read together
  kernels::Tensor send_counts;      // i32 [world, 1]
  kernels::Tensor received_counts;  // i32 [world, 1]
  kernels::Tensor send_index;       // i32 [max_rows, world]
  kernels::Tensor copies;           // u8 [world, 8]: u64 [world]
  kernels::Tensor rank_of_expert;   // i32 [layers, experts]
  kernels::Tensor local_index;      // i32 [layers, experts]
  std::vector<kernels::Buffer> memory;
};

class ExpertExchangeBase : public ExpertExchange {
 public:
  ExpertExchangeBase(const model::Config& config, Communicator& world, kernels::Ops& ops,
                     const ExchangeOptions& options,
                     std::shared_ptr<const ExchangeBuffers> buffers);

  int64_t max_output_rows() const override { return int64_t{world_.size()} * max_rows_; }
  ExchangeStats stats() const override;

 protected:
  // Packs `normed` into buffers_->send, block_slots apart, and keeps send_index and counts for
  // Combine.
  absl::Status Pack(int layer, kernels::Tensor normed, const kernels::Routing& routing,
                    int64_t block_slots);
  // The fields of received slots, the layer's local indices; counts and positions are the caller's.
  kernels::ExpertTokens ReceivedTokens(int layer) const;

  int64_t partial_row_bytes() const {
    return int64_t{hidden_size_} * kernels::SizeOf(ops_.partial_dtype());
  }
  kernels::Tensor send_index() const { return buffers_->send_index.Rows(0, rows_); }

  MeteredCommunicator world_;
  kernels::Ops& ops_;
  const int max_rows_;
  const int hidden_size_;
  const kernels::SlotLayout layout_;
  const std::shared_ptr<const ExchangeBuffers> buffers_;
  int64_t rows_ = 0;  // of the last Dispatch
};

// Each in its own file.
using ExchangeMaker = std::unique_ptr<ExpertExchange>(const model::Config&, Communicator&,
                                                      kernels::Ops&, const ExchangeOptions&,
                                                      std::shared_ptr<const ExchangeBuffers>);
ExchangeMaker MakeFixedExchange;
ExchangeMaker MakeExactExchange;

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_EXPERT_EXCHANGE_BASE_H_
