#include "worker/expert_exchange_base.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/status_macros.h"

namespace conclave::worker {

using kernels::DType;
using kernels::Tensor;

int ComputingRank(std::span<const int> holders, int source) {
  if (std::find(holders.begin(), holders.end(), source) != holders.end()) return source;
  return holders[source % holders.size()];
}

ExpertExchangeBase::ExpertExchangeBase(const model::Config& config, Communicator& world,
                                       kernels::Ops& ops, const ExchangeOptions& options)
    : world_(world),
      ops_(ops),
      max_rows_(options.max_rows),
      hidden_size_(config.hidden_size),
      num_experts_(config.num_experts),
      layout_(kernels::MakeSlotLayout(ops.activation_dtype(), config.hidden_size,
                                      config.experts_per_token)) {}

absl::StatusOr<Tensor> ExpertExchangeBase::Allocate(DType dtype, int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(kernels::Buffer buffer, ops_.Allocate(rows * cols * kernels::SizeOf(dtype)));
  memory_.push_back(buffer);
  return buffer.AsTensor(dtype, rows, cols);
}

absl::Status ExpertExchangeBase::AllocateShared(const model::Placement& placement) {
  const int world = world_.size();
  const int rank = world_.rank();
  const int64_t layers = static_cast<int64_t>(placement.layers.size());
  std::vector<int32_t> computing;
  std::vector<int32_t> local;
  for (const model::LayerPlacement& layer : placement.layers) {
    const std::vector<int> mine = layer.ExpertsOf(rank);
    for (int expert = 0; expert < num_experts_; ++expert) {
      computing.push_back(ComputingRank(layer.ranks_of_expert[expert], rank));
      const auto found = std::lower_bound(mine.begin(), mine.end(), expert);
      const bool held = found != mine.end() && *found == expert;
      local.push_back(held ? static_cast<int32_t>(found - mine.begin()) : -1);
    }
  }
  ASSIGN_OR_RETURN(rank_of_expert_, Allocate(DType::kI32, layers, num_experts_));
  ASSIGN_OR_RETURN(local_index_, Allocate(DType::kI32, layers, num_experts_));
  ops_.Write(rank_of_expert_, computing.data());
  ops_.Write(local_index_, local.data());

  const int64_t slots = int64_t{world} * (1 + max_rows_);
  ASSIGN_OR_RETURN(send_, Allocate(DType::kU8, slots, layout_.slot_bytes));
  ASSIGN_OR_RETURN(recv_, Allocate(DType::kU8, slots, layout_.slot_bytes));
  ASSIGN_OR_RETURN(returned_, Allocate(ops_.partial_dtype(), max_output_rows(), hidden_size_));
  ASSIGN_OR_RETURN(send_counts_, Allocate(DType::kI32, world, 1));
  ASSIGN_OR_RETURN(send_index_, Allocate(DType::kI32, std::max(max_rows_, 1), world));
  return absl::OkStatus();
}

absl::Status ExpertExchangeBase::Pack(int layer, Tensor normed, const kernels::Routing& routing,
                                      int64_t block_slots) {
  if (normed.rows >= block_slots || normed.rows > max_rows_) {
    return absl::InternalError(fmt::format("{} rows to dispatch, room for {} of at most {}",
                                           normed.rows, block_slots - 1, max_rows_));
  }
  rows_ = normed.rows;
  const kernels::DispatchTables tables = {world_.size(),
                                          rank_of_expert_.Rows(layer, 1).as<const int32_t>()};
  ops_.PackDispatch(tables, layout_, normed, routing, block_slots,
                    send_.Rows(0, block_slots * world_.size()), send_index(), send_counts_);
  return absl::OkStatus();
}

kernels::ExpertTokens ExpertExchangeBase::ReceivedTokens(int layer) const {
  kernels::ExpertTokens tokens;
  tokens.num_sources = world_.size();
  const std::byte* slots = recv_.as<const std::byte>();
  tokens.hidden = slots + layout_.hidden_offset;
  tokens.expert_ids = slots + layout_.expert_ids_offset;
  tokens.weights = slots + layout_.weights_offset;
  tokens.hidden_stride = layout_.slot_bytes;
  tokens.expert_ids_stride = layout_.slot_bytes;
  tokens.weights_stride = layout_.slot_bytes;
  tokens.local_index = local_index_.Rows(layer, 1).as<const int32_t>();
  return tokens;
}

}  // namespace conclave::worker
