#ifndef CONCLAVE_WORKER_TRANSFORMER_H_
#define CONCLAVE_WORKER_TRANSFORMER_H_

// The forward pass of one rank, written once against kernels/ops.h: embed, layers, logits, sample.
//
//   Transformer transformer(...);
//   absl::StatusOr<StepOutput> out = transformer.Step(resolved, mode, bucket);
//
// Used by the step thread alone. All buffers are allocated by Create.

#include <cstdint>
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
#include "worker/weights.h"

namespace conclave::worker {

struct SampledToken {
  int slot = 0;
  int position = 0;
  int token = 0;
  float logprob = 0;
  std::vector<std::pair<int, float>> top;
};

struct HeadOutput {
  int slot = 0;
  int head = 0;
  int first_position = 0;
  std::vector<float> logits;  // [rows, labels]
};

struct StepOutput {
  std::vector<SampledToken> sampled;  // filled on tp rank 0
  std::vector<HeadOutput> heads;      // filled on tp rank 0
  int64_t step_ns = 0;
  int64_t exchange_ns = 0;  // part of step_ns spent in collectives
};

struct TransformerOptions {
  model::ParallelShape shape;
  int rank = 0;
  int max_step_tokens = 0;
  int max_sequences = 0;
  int block_tokens = 16;
  int full_blocks = 0;
  int sliding_blocks = 0;
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

  // For tests and offline use: as Step, and additionally the logits f32 [rows, V] of every row and
  // the residual stream after the embedding, each layer and the final norm, [layers + 2][rows, H].
  // World = 1 only.
  struct Trace {
    std::vector<float> logits;
    std::vector<std::vector<float>> hidden;
  };
  virtual absl::StatusOr<Trace> TraceStep(const ResolvedStep& step) = 0;

  virtual const ExchangeStats& exchange_stats() const = 0;
  // Token-expert pairs computed here since Create, [layers, local experts].
  virtual std::vector<uint64_t> ExpertLoad() = 0;
  virtual int64_t kv_bytes() const = 0;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_H_
