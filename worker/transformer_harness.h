#ifndef CONCLAVE_WORKER_TRANSFORMER_HARNESS_H_
#define CONCLAVE_WORKER_TRANSFORMER_HARNESS_H_

// All ranks of a world in one process, one thread each, over Gloo on the loopback interface; for
// tests.
//
//   ASSERT_OK(world = TransformerHarness::Create({.model_dir = dir, .shape = {.dp = 2, .tp = 2}}));
//   world->Step({plan_of_group_0, plan_of_group_1}, mode, bucket);

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/harness_options.h"
#include "worker/sequence_table.h"
#include "worker/transformer.h"

namespace conclave::worker {

class TransformerHarness {
 public:
  static absl::StatusOr<std::unique_ptr<TransformerHarness>> Create(HarnessOptions options);
  ~TransformerHarness();

  const model::Config& config() const;
  const HarnessOptions& options() const;

  // One step of the world: a plan for each group. Returns each group's output, from its tp rank 0;
  // the first error of any rank otherwise.
  absl::StatusOr<std::vector<StepOutput>> Step(const std::vector<internal::v1::StepPlan>& plans,
                                               internal::v1::ExchangeMode mode, int bucket);

  // As Step, with a trace; world = 1. `resolved` gets the rows.
  absl::StatusOr<Transformer::Trace> Trace(const internal::v1::StepPlan& plan,
                                           ResolvedStep& resolved);

  // Of one rank, between steps.
  const RankWeights& weights(int rank) const;
  Transformer& transformer(int rank);

 private:
  class Rank;
  TransformerHarness() = default;
  // Runs `body` on every rank's thread and waits.
  absl::Status OnAllRanks(const std::function<absl::Status(Rank&)>& body);

  std::unique_ptr<HarnessOptions> options_;
  std::unique_ptr<model::Config> config_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_HARNESS_H_
