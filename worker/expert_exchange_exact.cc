// Exact: the counts travel first and reach the host, then just the copies, packed by source without
// headers or gaps; the sums come home packed alike.

#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "worker/expert_exchange_base.h"

namespace conclave::worker {
namespace {

using kernels::Tensor;

// Blocks of one AllToAllV, in bytes.
struct Blocks {
  explicit Blocks(int world) : bytes(world), offsets(world) {}
  std::vector<int64_t> bytes;
  std::vector<int64_t> offsets;
};

class ExactExchange final : public ExpertExchangeBase {
 public:
  ExactExchange(const model::Config& config, Communicator& world, kernels::Ops& ops,
                const ExchangeOptions& options, std::shared_ptr<const ExchangeBuffers> buffers)
      : ExpertExchangeBase(config, world, ops, options, std::move(buffers)),
        counts_(2 * world.size()),
        sent_(counts_.data(), world.size()),
        received_(counts_.data() + world.size(), world.size()),
        first_sent_(world.size()),
        first_received_(world.size()),
        out_(world.size()),
        in_(world.size()) {}

  void SetBucket(int) override {}

  absl::StatusOr<kernels::ExpertTokens> Dispatch(int layer, Tensor normed,
                                                 const kernels::Routing& routing) override {
    const int64_t block_slots = 1 + normed.rows;
    RETURN_IF_ERROR(Pack(layer, normed, routing, block_slots));
    RETURN_IF_ERROR(ExchangeCounts());
    for (int r = 0; r < world_.size(); ++r) {
      out_.bytes[r] = sent_[r] * layout_.slot_bytes;
      out_.offsets[r] = (r * block_slots + 1) * layout_.slot_bytes;
      in_.bytes[r] = received_[r] * layout_.slot_bytes;
      in_.offsets[r] = first_received_[r] * layout_.slot_bytes;
    }
    RETURN_IF_ERROR(world_.AllToAllV(buffers_->send.data, out_.bytes, out_.offsets,
                                     buffers_->recv.data, in_.bytes, in_.offsets));
    kernels::ExpertTokens tokens = ReceivedTokens(layer);
    tokens.max_copies = std::accumulate(received_.begin(), received_.end(), 0);
    tokens.counts = buffers_->received_counts.as<const int32_t>();
    tokens.first_slot = first_received_.data();
    tokens.first_output = first_received_.data();
    return tokens;
  }

  absl::Status Combine(Tensor partial, Tensor x) override {
    for (int r = 0; r < world_.size(); ++r) {
      out_.bytes[r] = received_[r] * partial_row_bytes();
      out_.offsets[r] = first_received_[r] * partial_row_bytes();
      in_.bytes[r] = sent_[r] * partial_row_bytes();
      in_.offsets[r] = first_sent_[r] * partial_row_bytes();
    }
    RETURN_IF_ERROR(world_.AllToAllV(partial.data, out_.bytes, out_.offsets,
                                     buffers_->returned.data, in_.bytes, in_.offsets));
    ops_.CombineResidual(buffers_->returned, first_sent_.data(), send_index(), x);
    return absl::OkStatus();
  }

 private:
  absl::Status ExchangeCounts() {
    RETURN_IF_ERROR(world_.AllToAll(buffers_->send_counts.data, buffers_->received_counts.data,
                                    sizeof(int32_t)));
    ops_.Read(buffers_->counts, counts_.data());
    // What an exchange that failed brought is not worth looking at.
    RETURN_IF_ERROR(world_.Check());
    std::exclusive_scan(sent_.begin(), sent_.end(), first_sent_.begin(), 0);
    std::exclusive_scan(received_.begin(), received_.end(), first_received_.begin(), 0);
    for (int32_t count : received_) {
      // Before it sizes a copy into the receive buffer.
      if (count < 0 || count > max_rows_) {
        return absl::InternalError("a peer dispatches more copies than any rank may have rows");
      }
    }
    return absl::OkStatus();
  }

  std::vector<int32_t> counts_;        // [2 * world], what follows
  const std::span<int32_t> sent_;      // [world] copies to each rank
  const std::span<int32_t> received_;  // [world] copies from each rank
  std::vector<int32_t> first_sent_;
  std::vector<int32_t> first_received_;
  Blocks out_;
  Blocks in_;
};

}  // namespace

std::unique_ptr<ExpertExchange> MakeExactExchange(const model::Config& config, Communicator& world,
                                                  kernels::Ops& ops, const ExchangeOptions& options,
                                                  std::shared_ptr<const ExchangeBuffers> buffers) {
  return std::make_unique<ExactExchange>(config, world, ops, options, std::move(buffers));
}

}  // namespace conclave::worker
