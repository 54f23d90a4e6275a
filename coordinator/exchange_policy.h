#ifndef CONCLAVE_COORDINATOR_EXCHANGE_POLICY_H_
#define CONCLAVE_COORDINATOR_EXCHANGE_POLICY_H_

// How the ranks exchange tokens in one step. Decided here, once, for the whole world, and sent in
// every plan, so that no two ranks can disagree.

#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

enum class ExchangeChoice { kAuto, kFixed, kExact, kReplicated };

// auto, fixed, exact or replicated, as on the command line.
absl::StatusOr<ExchangeChoice> ParseExchangeChoice(std::string_view text);

// Up to this many rows the activations of a dp = 1 group stay replicated: one all-reduce of
// 64 x hidden values costs less than the two all-to-alls and the all-gather that partitioning the
// tokens needs; beyond, every rank would compute the router and carry the sum of all rows.
inline constexpr int kReplicatedRows = 64;

// Decode steps use buffers of fixed capacity while a rank has at most this many slots for all ranks
// (bucket x world), which is what padding on the wire grows with. The exact mode sends less, but
// its counts go through the host, so it is launched op by op. Measured on four GPUs over NVLink, a
// layer of 120b at 2,048 slots: 157 us with padding, 450 us with counts (docs/benchmarks.md).
inline constexpr int kFixedSlots = 2048;

// Rows of one group in one step.
struct GroupRows {
  int rows = 0;
  int longest_chunk = 0;
};

struct ExchangeDecision {
  internal::v1::ExchangeMode mode = internal::v1::EXCHANGE_MODE_FIXED;
  int bucket = 1;  // slots per rank pair
};

class ExchangePolicy {
 public:
  // INVALID_ARGUMENT when `choice` cannot work in `shape`. `max_step_tokens`: rows of a group in
  // one step at most.
  static absl::StatusOr<ExchangePolicy> Create(ExchangeChoice choice,
                                               const model::ParallelShape& shape,
                                               int max_step_tokens);

  // `groups` [dp].
  ExchangeDecision Decide(const std::vector<GroupRows>& groups) const;

 private:
  ExchangePolicy(ExchangeChoice choice, const model::ParallelShape& shape, int max_step_tokens)
      : choice_(choice), shape_(shape), max_step_tokens_(max_step_tokens) {}

  internal::v1::ExchangeMode Mode(int group_rows, int bucket, int longest_chunk) const;
  // A group's rows are spread over its tp ranks before they are dispatched.
  int RowsPerRank(int group_rows) const { return (group_rows + shape_.tp - 1) / shape_.tp; }

  ExchangeChoice choice_;
  model::ParallelShape shape_;
  int max_step_tokens_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_EXCHANGE_POLICY_H_
