#ifndef CONCLAVE_WORKER_TRANSFORMER_H_
#define CONCLAVE_WORKER_TRANSFORMER_H_

// The forward pass of one rank, written once against kernels/ops.h: embed, layers, logits, sample.
//
//   Transformer transformer(...);
//   absl::StatusOr<StepOutput> out = transformer.Step(resolved, mode, bucket);
//
// Used by the step thread alone. All buffers are allocated by Create.
//
// How the ranks share a layer, by shape and by the plan's exchange mode:
//
//   world = 1           no exchange
//   tp = 1              each group is one rank: dispatch, experts, combine over the world
//   replicated (dp = 1) every rank routes the same rows and computes its experts on its own copy, a
//                       replicated one on one of its ranks, always the same (ReplicaFor); the
//                       partial sums of o_proj and of the experts are all-reduced
//   tp > 1 otherwise    the group's rows are partitioned over its tp ranks (contiguous, as even as
//                       they get: rank r has rows [T r / tp, T (r + 1) / tp)): reduce-scatter after
//                       o_proj, routing and dispatch of the share, combine, all-gather of x

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/placement.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "worker/communicator.h"
#include "worker/expert_exchange.h"
#include "worker/sequence_table.h"
#include "worker/transformer_output.h"
#include "worker/weights.h"

namespace conclave::worker {

struct StepOutput {
  std::vector<SampledToken> sampled;  // filled on tp rank 0
  std::vector<HeadOutput> heads;      // filled on tp rank 0
  std::vector<TargetOutput> targets;  // filled on tp rank 0
  int64_t step_ns = 0;
  int64_t exchange_ns = 0;  // part of step_ns spent in collectives
  int64_t wait_ns = 0;      // part of exchange_ns spent waiting for peers
};

struct TransformerOptions {
  model::ParallelShape shape;
  int rank = 0;
  int max_step_tokens = 0;
  int max_sequences = 0;
  int block_tokens = 16;
  int full_blocks = 0;
  int sliding_blocks = 0;
  // Asked between layers; true ends the step with UNAVAILABLE. May be empty.
  std::function<bool()> aborted;
};

class Transformer {
 public:
  // Everything borrowed outlives the transformer. `world` and `tp_group` are null for size 1.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const model::Config& config,
                                                             const RankWeights& weights,
                                                             const model::Placement& placement,
                                                             const TransformerOptions& options,
                                                             kernels::Ops& ops, Communicator* world,
                                                             Communicator* tp_group);
  virtual ~Transformer() = default;

  // One step. `bucket` as in StepPlan. UNAVAILABLE when a collective failed.
  virtual absl::StatusOr<StepOutput> Step(const ResolvedStep& step, internal::v1::ExchangeMode mode,
                                          int bucket) = 0;

  // Step in two parts, so that a step is enqueued before the one before has ended: for steps that
  // RunsAhead allows. Up to kernels::kMaxStepsAhead may be started and not finished; before Step
  // they must be finished. After an error all of them are lost.
  virtual bool RunsAhead(const ResolvedStep& step) const = 0;
  virtual absl::Status Start(ResolvedStep step, internal::v1::ExchangeMode mode, int bucket) = 0;
  // Of the oldest: whether Finish would not wait.
  virtual bool Finished() = 0;
  virtual absl::StatusOr<StepOutput> Finish() = 0;

  // For tests and offline use: as Step, and additionally the logits f32 [rows, V] of every row; the
  // residual stream after the embedding and each layer, then the final-normed hidden state,
  // [layers + 2][rows, H]; what each layer's router read and chose. World = 1 only.
  struct Trace {
    std::vector<float> logits;
    std::vector<std::vector<float>> hidden;
    std::vector<std::vector<float>> normed;          // [layers][rows, H]
    std::vector<std::vector<int32_t>> expert_ids;    // [layers][rows, k]
    std::vector<std::vector<float>> expert_weights;  // [layers][rows, k]
  };
  // `layer_inputs` [layers][rows, H], rounded to the activation type, replaces what each layer
  // would read of the layers below, so that layers are compared one by one; empty: nothing is
  // replaced.
  virtual absl::StatusOr<Trace> TraceStep(const ResolvedStep& step,
                                          std::span<const std::vector<float>> layer_inputs) = 0;
  absl::StatusOr<Trace> TraceStep(const ResolvedStep& step) { return TraceStep(step, {}); }

  // Goes on in a new epoch: the experts of `weights` and `placement` have been replaced in place,
  // `world` and `tp_group` take the place of those of before. Between steps, when nothing recorded
  // is left. Sequences keep their cache; what is counted begins anew.
  virtual absl::Status Regroup(Communicator* world, Communicator* tp_group) = 0;

  // All three since Create or Regroup.
  virtual const ExchangeStats& exchange_stats() const = 0;
  // Token-expert pairs computed here, [layers, local experts]. Waits for the device.
  virtual std::vector<uint64_t> ExpertLoad() = 0;
  // Copies sent to each rank's experts, [world], 0 for this one's; empty in a world of one. Waits
  // for the device.
  virtual std::vector<uint64_t> CopiesToRanks() = 0;
  virtual int64_t kv_bytes() const = 0;
  // Of all other buffers; model::PlanActivations foretells it.
  virtual int64_t activation_bytes() const = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_H_
