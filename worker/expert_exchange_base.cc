#include "worker/expert_exchange_base.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/status_macros.h"
#include "worker/computing_rank.h"

namespace conclave::worker {

using kernels::DType;
using kernels::Tensor;

namespace {

kernels::SlotLayout SlotLayoutOf(const model::Config& config, const kernels::Ops& ops) {
  return kernels::MakeSlotLayout(ops.activation_dtype(), config.hidden_size,
                                 config.experts_per_token);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ExchangeBuffers>> ExchangeBuffers::Create(
    const model::Config& config, const model::Placement& placement, const Communicator& world,
    kernels::Ops& ops, const ExchangeOptions& options) {
  auto buffers = std::make_shared<ExchangeBuffers>();
  const auto allocate = [&](DType dtype, int64_t rows, int64_t cols) -> absl::StatusOr<Tensor> {
    ASSIGN_OR_RETURN(kernels::Buffer buffer, ops.Allocate(rows * cols * kernels::SizeOf(dtype)));
    buffers->memory.push_back(buffer);
    return buffer.AsTensor(dtype, rows, cols);
  };
  std::vector<int32_t> computing;
  std::vector<int32_t> local;
  for (const model::LayerPlacement& layer : placement.layers) {
    const std::vector<int> mine = layer.ExpertsOf(world.rank());
    for (int expert = 0; expert < config.num_experts; ++expert) {
      computing.push_back(ComputingRank(layer.ranks_of_expert[expert], world.rank()));
      const auto found = std::lower_bound(mine.begin(), mine.end(), expert);
      const bool held = found != mine.end() && *found == expert;
      local.push_back(held ? static_cast<int32_t>(found - mine.begin()) : -1);
    }
  }
  const auto layers = static_cast<int64_t>(placement.layers.size());
  ASSIGN_OR_RETURN(buffers->rank_of_expert, allocate(DType::kI32, layers, config.num_experts));
  ASSIGN_OR_RETURN(buffers->local_index, allocate(DType::kI32, layers, config.num_experts));
  ops.Write(buffers->rank_of_expert, computing.data());
  ops.Write(buffers->local_index, local.data());

  const int64_t ranks = world.size();
  const int64_t rows = options.max_rows;
  const int64_t slot_bytes = SlotLayoutOf(config, ops).slot_bytes;
  ASSIGN_OR_RETURN(buffers->send, allocate(DType::kU8, ranks * (1 + rows), slot_bytes));
  ASSIGN_OR_RETURN(buffers->recv, allocate(DType::kU8, ranks * (1 + rows), slot_bytes));
  ASSIGN_OR_RETURN(buffers->returned,
                   allocate(ops.partial_dtype(), ranks * rows, config.hidden_size));
  ASSIGN_OR_RETURN(buffers->counts, allocate(DType::kI32, 2 * ranks, 1));
  buffers->send_counts = buffers->counts.Rows(0, ranks);
  buffers->received_counts = buffers->counts.Rows(ranks, ranks);
  ASSIGN_OR_RETURN(buffers->send_index, allocate(DType::kI32, std::max<int64_t>(rows, 1), ranks));
  ASSIGN_OR_RETURN(buffers->copies, allocate(DType::kU8, ranks, sizeof(uint64_t)));
  return buffers;
}

ExpertExchangeBase::ExpertExchangeBase(const model::Config& config, Communicator& world,
                                       kernels::Ops& ops, const ExchangeOptions& options,
                                       std::shared_ptr<const ExchangeBuffers> buffers)
    : world_(world),
      ops_(ops),
      max_rows_(options.max_rows),
      hidden_size_(config.hidden_size),
      layout_(SlotLayoutOf(config, ops)),
      buffers_(std::move(buffers)) {}

ExchangeStats ExpertExchangeBase::stats() const {
  const std::span<const int64_t> bytes = world_.bytes_sent_to();
  return {.bytes_to = {bytes.begin(), bytes.end()},
          .seconds = world_.seconds(),
          .wait_seconds = world_.seconds_waited()};
}

absl::Status ExpertExchangeBase::Pack(int layer, Tensor normed, const kernels::Routing& routing,
                                      int64_t block_slots) {
  if (normed.rows >= block_slots || normed.rows > max_rows_) {
    return absl::InternalError(fmt::format("{} rows to dispatch, room for {} of at most {}",
                                           normed.rows, block_slots - 1, max_rows_));
  }
  rows_ = normed.rows;
  const kernels::DispatchTables tables = {
      world_.size(), buffers_->rank_of_expert.Rows(layer, 1).as<const int32_t>(),
      buffers_->copies.as<uint64_t>()};
  ops_.PackDispatch(tables, layout_, normed, routing, block_slots,
                    buffers_->send.Rows(0, block_slots * world_.size()), send_index(),
                    buffers_->send_counts);
  return absl::OkStatus();
}

kernels::ExpertTokens ExpertExchangeBase::ReceivedTokens(int layer) const {
  kernels::ExpertTokens tokens;
  tokens.num_sources = world_.size();
  const std::byte* slots = buffers_->recv.as<const std::byte>();
  tokens.hidden = slots + layout_.hidden_offset;
  tokens.expert_ids = slots + layout_.expert_ids_offset;
  tokens.weights = slots + layout_.weights_offset;
  tokens.hidden_stride = layout_.slot_bytes;
  tokens.expert_ids_stride = layout_.slot_bytes;
  tokens.weights_stride = layout_.slot_bytes;
  tokens.local_index = buffers_->local_index.Rows(layer, 1).as<const int32_t>();
  return tokens;
}

absl::StatusOr<ExpertExchanges> MakeExpertExchanges(const model::Config& config,
                                                    const model::Placement& placement,
                                                    Communicator& world, kernels::Ops& ops,
                                                    const ExchangeOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const ExchangeBuffers> buffers,
                   ExchangeBuffers::Create(config, placement, world, ops, options));
  ExpertExchanges exchanges;
  exchanges.fixed = MakeFixedExchange(config, world, ops, options, buffers);
  exchanges.exact = MakeExactExchange(config, world, ops, options, buffers);
  for (const kernels::Buffer& buffer : buffers->memory) exchanges.bytes += buffer.bytes;
  exchanges.copies = buffers->copies;
  return exchanges;
}

}  // namespace conclave::worker
