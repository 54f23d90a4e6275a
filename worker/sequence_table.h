#ifndef CONCLAVE_WORKER_SEQUENCE_TABLE_H_
#define CONCLAVE_WORKER_SEQUENCE_TABLE_H_

// What a worker remembers of each resident sequence between plans: plans carry deltas.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::worker {

struct Sequence {
  bool in_use = false;
  int position = 0;  // tokens cached so far = position of the next one
  // Position of the token sampled last for this slot and still on the device, -1: none.
  int sampled_position = -1;
  bool in_step = false;  // has a chunk in the plan being applied
  internal::v1::Sampling sampling;
  std::vector<int32_t> full_blocks;
  std::vector<int32_t> sliding_blocks;
  int sliding_first = 0;                   // block number of sliding_blocks[0]
  std::vector<int32_t> forced_expert_ids;  // [positions, layers, k] or empty
};

// A plan applied to the table: the rows of one step in the form the ops take. Owns what the spans
// of `batch` point to.
struct ResolvedStep {
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<kernels::SequenceRun> runs;
  // Rows whose next token is sampled, their parameters and slots.
  std::vector<int32_t> sample_rows;
  std::vector<kernels::SampleParams> sample_params;
  std::vector<int32_t> sample_slots;
  struct HeadRead {
    int slot = 0;
    int head = 0;
    int first_position = 0;
    std::vector<int32_t> rows;
  };
  std::vector<HeadRead> head_reads;
  // Rows asked for the log-probabilities of given tokens.
  struct TargetRead {
    int slot = 0;
    int first_position = 0;
    int top = 0;
    std::vector<int32_t> rows;
    std::vector<int32_t> targets;  // one for each row
  };
  std::vector<TargetRead> target_reads;
  // What new sequences tell the sampler of their slots.
  struct NewSlot {
    int slot = 0;
    std::vector<int32_t> bias_tokens;
    std::vector<float> biases;
    std::vector<int32_t> end_tokens;
    bool counted = false;
    std::vector<int32_t> history;
    int prompt_tokens = 0;

    kernels::SlotSampling sampling() const {
      return {bias_tokens, biases, end_tokens, counted, history, prompt_tokens};
    }
  };
  std::vector<NewSlot> new_slots;
  // [layers][rows, k], -1 where the router decides; empty: nothing is forced.
  std::vector<std::vector<int32_t>> forced;

  kernels::StepBatch batch() const {
    return {token_ids, positions, runs, sample_rows, sample_params, sample_slots};
  }
};

// Owned by the step thread.
class SequenceTable {
 public:
  struct Limits {
    int max_sequences = 0;
    int max_step_tokens = 0;
    int vocab_size = 0;
    int context_length = 0;
    int num_layers = 0;
    int experts_per_token = 0;
    int num_experts = 0;
    int sliding_window = 0;
    int block_tokens = 16;
    int full_blocks = 0;
    int sliding_blocks = 0;
    std::vector<int> head_labels;  // labels of each head
  };
  explicit SequenceTable(Limits limits);

  // Applies the plan's frees, new sequences and chunks. A plan that does not fit the table (unknown
  // slot, missing block, gap in positions) is INTERNAL: the two sides disagree and the epoch ends;
  // the table is of no use after that. The runs point into the table: valid until the next Apply.
  absl::StatusOr<ResolvedStep> Apply(const internal::v1::StepPlan& plan);

 private:
  struct Block {
    int holders = 0;  // slots whose table has it
    // Its number in the tables of the sequences it was computed for, once it is whole; -1 before.
    int number = -1;
  };
  using Blocks = std::vector<Block>;  // of one kind

  static absl::Status Take(const google::protobuf::RepeatedField<uint32_t>& ids, uint32_t slot,
                           const char* kind, Blocks& blocks, std::vector<int32_t>& table);
  // As Take, but of blocks that hold numbers [first, ...) already, and maybe in other tables too.
  static absl::Status Share(const google::protobuf::RepeatedField<uint32_t>& ids, uint32_t first,
                            uint32_t slot, const char* kind, Blocks& blocks,
                            std::vector<int32_t>& table);
  absl::Status AddCached(const internal::v1::NewSequence& added, Sequence& sequence);
  // Positions [0, end) of the sequence are computed by the step being applied.
  void NoteWhole(const Sequence& sequence, int end);

  absl::StatusOr<Sequence*> Find(uint32_t slot, const char* what);
  absl::Status Free(uint32_t slot);
  absl::Status Add(const internal::v1::NewSequence& added, ResolvedStep& step);
  absl::Status AddSlot(const internal::v1::NewSequence& added, ResolvedStep& step) const;
  absl::Status CopyTokens(const google::protobuf::RepeatedField<uint32_t>& tokens, uint32_t slot,
                          int most, std::vector<int32_t>& out) const;
  absl::Status CheckForced(const internal::v1::NewSequence& added) const;
  absl::Status Release(const internal::v1::Chunk& chunk);
  absl::Status Append(const internal::v1::Chunk& chunk);
  absl::Status AddChunk(const internal::v1::Chunk& chunk, ResolvedStep& step);
  absl::Status AddRows(const internal::v1::Chunk& chunk, const Sequence& sequence,
                       ResolvedStep& step) const;
  absl::Status AddReads(const internal::v1::Chunk& chunk, int first_row, int rows,
                        ResolvedStep& step) const;
  absl::Status AddTargets(const internal::v1::Chunk& chunk, int first_row, int rows,
                          ResolvedStep& step) const;
  void AddForced(const std::vector<const Sequence*>& row_sequences, ResolvedStep& step) const;

  Limits limits_;
  std::vector<Sequence> sequences_;
  Blocks full_;
  Blocks sliding_;
};

}  // namespace conclave::worker

#endif  // CONCLAVE_WORKER_SEQUENCE_TABLE_H_
