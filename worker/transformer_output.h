#ifndef CONCLAVE_WORKER_TRANSFORMER_OUTPUT_H_
#define CONCLAVE_WORKER_TRANSFORMER_OUTPUT_H_

// The end of a step: final norm, logits, sampling and classification heads, for the rows that want
// them. Logits are made in tiles of at most 256 rows.
//
// With the vocabulary split over a tp group, a tile is transposed over the group: rank r has the
// logits of all its n rows over V_r ids, and wants those of its share of the rows over all V ids.
//
//        V_0   V_1                      V_0   V_1
//   row +-----+-----+              row +-----------+
//     0 |  r  |  r  |                0 |   rank 0  |
//     1 |  a  |  a  |   all-to-all   1 |           |   then each rank samples its rows,
//       |  n  |  n  |  ----------->    +-----------+   and ids and log-probabilities are
//     2 |  k  |  k  |                2 |   rank 1  |   gathered on all
//     3 |  0  |  1  |                3 |           |
//       +-----+-----+                  +-----------+

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "worker/communicator.h"
#include "worker/sequence_table.h"
#include "worker/weights.h"

namespace conclave::worker {

struct SampledToken {
  int slot = 0;
  int position = 0;  // of the token drawn
  int token = 0;
  float logprob = 0;                       // if asked for
  std::vector<std::pair<int, float>> top;  // by falling log-probability
};

struct HeadOutput {
  int slot = 0;
  int head = 0;
  int first_position = 0;
  std::vector<float> logits;  // [rows, labels]
};

struct TargetOutput {
  int slot = 0;
  int first_position = 0;       // of the first row
  std::vector<float> logprobs;  // [rows] of the targets
  int top = 0;
  std::vector<int32_t> top_tokens;  // [rows, top], by falling log-probability
  std::vector<float> top_logprobs;  // [rows, top]
};

// Used by the step thread alone. Borrows everything it is made with.
class TransformerOutput {
 public:
  // `group` is the tp group, null for tp = 1.
  static absl::StatusOr<TransformerOutput> Create(const model::Config& config,
                                                  const RankWeights& weights, int max_sequences,
                                                  kernels::Ops& ops, Communicator* group);

  // Samples the first `samples` rows that the step wants from x [T, H] and makes the tokens the
  // last of their slots. The same calls on every rank of the group.
  absl::Status Sample(int samples, int logprobs, kernels::Tensor x);

  // What Sample drew. Waits for the device.
  std::vector<SampledToken> ReadSampled(const ResolvedStep& step);

  // The same in two parts, between which other steps may be enqueued (Ops::StartReads).
  void StartSampled(const ResolvedStep& step);
  absl::StatusOr<std::vector<SampledToken>> FinishSampled(const ResolvedStep& step);

  // The heads that `step` reads. Waits for the device.
  std::vector<HeadOutput> ReadHeads(const ResolvedStep& step, kernels::Tensor x);

  // The log-probabilities of targets that `step` reads, if `report`; else nothing. The same calls
  // on every rank of the group, after ReadSampled. Waits for the device.
  absl::StatusOr<std::vector<TargetOutput>> ReadTargets(const ResolvedStep& step, kernels::Tensor x,
                                                        bool report);

  // f32 [rows of x, V], for traces; tp = 1. Waits for the device.
  std::vector<float> ReadLogits(kernels::Tensor x);

  // Of all its buffers.
  int64_t bytes() const;

 private:
  TransformerOutput(const model::Config& config, const RankWeights& weights, kernels::Ops& ops,
                    Communicator* group)
      : config_(&config), weights_(&weights), ops_(&ops), group_(group) {}

  absl::Status Allocate(int max_sequences);
  absl::Status SampleTile(kernels::Tensor x, int begin, int rows, int logprobs);
  absl::StatusOr<kernels::Tensor> Transpose(kernels::Tensor logits,
                                            std::span<const int64_t> row_begin);
  absl::Status Gather(int begin, int rows, int logprobs, std::span<const int64_t> row_begin);
  absl::Status GatherLogprobs(const kernels::SampleOutput& tile, int logprobs,
                              std::span<const int64_t> row_begin);
  absl::Status TargetTile(kernels::Tensor x, std::span<const int32_t> rows,
                          std::span<const int32_t> targets, int top);
  void AppendTargets(int rows, TargetOutput& out);
  struct HostSampled;
  HostSampled RoomFor(const ResolvedStep& step) const;
  std::vector<SampledToken> Assemble(const ResolvedStep& step, const HostSampled& host) const;

  const model::Config* config_;
  const RankWeights* weights_;
  kernels::Ops* ops_;
  Communicator* group_;
  int tile_rows_ = 0;

  kernels::Tensor logits_;         // f32 [tile, V of this rank]
  kernels::Tensor received_;       // f32 [share of a tile, V], a block for each source
  kernels::Tensor joined_;         // f32 [share of a tile, V]
  kernels::Tensor head_logits_;    // f32 [tile, most labels]
  kernels::SampleOutput sampled_;  // [max_sequences, *]
  std::vector<kernels::Buffer> memory_;
};

// The most log-probabilities that a row wants: -1 none, 0 the token's own.
int MaxLogprobs(std::span<const kernels::SampleParams> params);

// Rows [begin[r], begin[r + 1]) are rank r's share of `rows`: contiguous, as even as they get.
std::vector<int64_t> SplitRows(int64_t rows, int ranks);

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_TRANSFORMER_OUTPUT_H_
