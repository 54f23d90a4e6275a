#ifndef CONCLAVE_WORKER_EXPERT_EXCHANGE_H_
#define CONCLAVE_WORKER_EXPERT_EXCHANGE_H_

// Moves tokens to the ranks that hold their experts and brings the weighted sums back: one copy of
// a token per destination *rank*, one partial sum per copy on the way home. One call of Dispatch,
// then one of Combine, per layer.
//
//   fixed   every rank pair has `bucket` slots; counts travel in a header slot; no count reaches
//           the host (decode)
//   exact   counts first, then just the payload (prefill)
//
// A rank's copies for its own experts stay in memory. Ranks without tokens take part with count 0.
// Used by the step thread alone.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/placement.h"
#include "worker/communicator.h"

namespace conclave::worker {

// Totals since construction of what the host knows.
struct ExchangeStats {
  std::vector<int64_t> bytes_to;  // [world] moved to each rank, padding and headers included
  double seconds = 0;             // wall time in collectives; 0 where they only enqueue
  double wait_seconds = 0;        // part of it: waiting for peers (Communicator::seconds_waited)
};

class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;

  // Sets the slots per rank pair for the coming layers: at least the most rows any rank dispatches
  // in this step, at most the capacity the exchange was made with. Same value on every rank.
  virtual void SetBucket(int bucket) = 0;

  // Sends `normed` [rows, H] (rows may be 0) by `routing`. The returned tokens stay valid until the
  // next Dispatch.
  virtual absl::StatusOr<kernels::ExpertTokens> Dispatch(int layer, kernels::Tensor normed,
                                                         const kernels::Routing& routing) = 0;

  // `partial` holds the sums for the dispatched tokens, row by output row. x [rows, H] += their
  // sums over the ranks, ascending.
  virtual absl::Status Combine(kernels::Tensor partial, kernels::Tensor x) = 0;

  // Rows that `partial` and the activations of the expert ops need at most.
  virtual int64_t max_output_rows() const = 0;

  virtual ExchangeStats stats() const = 0;
};

struct ExchangeOptions {
  int max_rows = 0;  // rows one rank dispatches at most
};

// The two modes of one rank. They share their buffers: a Dispatch of either ends what the last
// Dispatch of the other returned.
struct ExpertExchanges {
  std::unique_ptr<ExpertExchange> fixed;
  std::unique_ptr<ExpertExchange> exact;
  int64_t bytes = 0;  // of their buffers
  // Copies that both have sent to each rank, this one included: u64 [world] in device memory.
  kernels::Tensor copies;  // u8 [world, 8]
};

// `ops` and `world` are borrowed and must outlive the result.
absl::StatusOr<ExpertExchanges> MakeExpertExchanges(const model::Config& config,
                                                    const model::Placement& placement,
                                                    Communicator& world, kernels::Ops& ops,
                                                    const ExchangeOptions& options);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_EXPERT_EXCHANGE_H_
