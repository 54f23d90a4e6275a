#include "coordinator/exchange_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "model/row_bucket.h"

namespace conclave::coordinator {
namespace {

using internal::v1::EXCHANGE_MODE_EXACT;
using internal::v1::EXCHANGE_MODE_FIXED;
using internal::v1::EXCHANGE_MODE_REPLICATED;

}  // namespace

absl::StatusOr<ExchangeChoice> ParseExchangeChoice(std::string_view text) {
  if (text == "auto") return ExchangeChoice::kAuto;
  if (text == "fixed") return ExchangeChoice::kFixed;
  if (text == "exact") return ExchangeChoice::kExact;
  if (text == "replicated") return ExchangeChoice::kReplicated;
  return absl::InvalidArgumentError(
      fmt::format("exchange '{}' is unknown: use auto, fixed, exact or replicated", text));
}

absl::StatusOr<ExchangePolicy> ExchangePolicy::Create(ExchangeChoice choice,
                                                      const model::ParallelShape& shape,
                                                      int max_step_tokens) {
  if (choice == ExchangeChoice::kReplicated && (shape.dp != 1 || shape.tp == 1)) {
    return absl::InvalidArgumentError(
        fmt::format("exchange replicated needs dp = 1 and tp > 1, not dp = {} and tp = {}",
                    shape.dp, shape.tp));
  }
  return ExchangePolicy(choice, shape, max_step_tokens);
}

ExchangeDecision ExchangePolicy::Decide(const std::vector<GroupRows>& groups) const {
  int group_rows = 0;
  int longest_chunk = 0;
  for (const GroupRows& group : groups) {
    group_rows = std::max(group_rows, group.rows);
    longest_chunk = std::max(longest_chunk, group.longest_chunk);
  }
  const int rank_rows = std::max(1, RowsPerRank(group_rows));
  // A GPU cuts what it pads a group's decode rows to, so a rank may have more than of the rows
  // alone.
  const int most_rows = std::max(rank_rows, RowsPerRank(model::RowBucket(group_rows)));
  const int bucket = std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(most_rows))),
                              RowsPerRank(max_step_tokens_));
  return {.mode = Mode(group_rows, bucket, longest_chunk), .bucket = bucket};
}

internal::v1::ExchangeMode ExchangePolicy::Mode(int group_rows, int bucket,
                                                int longest_chunk) const {
  switch (choice_) {
    case ExchangeChoice::kFixed:
      return EXCHANGE_MODE_FIXED;
    case ExchangeChoice::kExact:
      return EXCHANGE_MODE_EXACT;
    case ExchangeChoice::kReplicated:
      return EXCHANGE_MODE_REPLICATED;
    case ExchangeChoice::kAuto:
      break;
  }
  if (shape_.dp == 1 && shape_.tp > 1 && group_rows <= kReplicatedRows) {
    return EXCHANGE_MODE_REPLICATED;
  }
  const bool fixed = longest_chunk <= 1 && bucket * shape_.world() <= kFixedSlots;
  return fixed ? EXCHANGE_MODE_FIXED : EXCHANGE_MODE_EXACT;
}

}  // namespace conclave::coordinator
