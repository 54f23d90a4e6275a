// Fixed capacity: a block of 1 + bucket slots for every rank pair, whatever it carries, so that the
// host knows all sizes and positions beforehand.
//
//   from rank s, at slot s * (1 + bucket):   | count, rest unused | copy 0 | ... | copy bucket-1 |
//   its partial sums, at row s * bucket:                          | sum 0  | ... | sum bucket-1  |

#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "worker/expert_exchange_base.h"

namespace conclave::worker {
namespace {

using kernels::Tensor;

class FixedExchange final : public ExpertExchangeBase {
 public:
  FixedExchange(const model::Config& config, Communicator& world, kernels::Ops& ops,
                const ExchangeOptions& options, std::shared_ptr<const ExchangeBuffers> buffers)
      : ExpertExchangeBase(config, world, ops, options, std::move(buffers)),
        first_slot_(world.size()),
        first_row_(world.size()) {
    SetBucket(max_rows_);
  }

  void SetBucket(int bucket) override {
    bucket_ = bucket;
    for (int r = 0; r < world_.size(); ++r) {
      first_slot_[r] = r * (1 + bucket) + 1;
      first_row_[r] = r * bucket;
    }
  }

  absl::StatusOr<kernels::ExpertTokens> Dispatch(int layer, Tensor normed,
                                                 const kernels::Routing& routing) override {
    if (bucket_ > max_rows_) {
      return absl::InternalError("the bucket exceeds the exchange's capacity");
    }
    RETURN_IF_ERROR(Pack(layer, normed, routing, 1 + bucket_));
    const int64_t block_bytes = (1 + bucket_) * layout_.slot_bytes;
    RETURN_IF_ERROR(world_.AllToAll(buffers_->send.data, buffers_->recv.data, block_bytes));
    kernels::ExpertTokens tokens = ReceivedTokens(layer);
    tokens.max_copies = bucket_ * world_.size();
    tokens.counts = buffers_->recv.as<const int32_t>();
    tokens.counts_stride = block_bytes;
    tokens.first_slot = first_slot_.data();
    tokens.first_output = first_row_.data();
    return tokens;
  }

  absl::Status Combine(Tensor partial, Tensor x) override {
    const int64_t block_bytes = bucket_ * partial_row_bytes();
    RETURN_IF_ERROR(world_.AllToAll(partial.data, buffers_->returned.data, block_bytes));
    ops_.CombineResidual(buffers_->returned, first_row_.data(), send_index(), x);
    return absl::OkStatus();
  }

 private:
  int64_t bucket_ = 0;
  std::vector<int32_t> first_slot_;
  std::vector<int32_t> first_row_;
};

}  // namespace

std::unique_ptr<ExpertExchange> MakeFixedExchange(const model::Config& config, Communicator& world,
                                                  kernels::Ops& ops, const ExchangeOptions& options,
                                                  std::shared_ptr<const ExchangeBuffers> buffers) {
  return std::make_unique<FixedExchange>(config, world, ops, options, std::move(buffers));
}

}  // namespace conclave::worker
