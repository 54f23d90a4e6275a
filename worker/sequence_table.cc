#include "worker/sequence_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/status_macros.h"

namespace conclave::worker {
namespace {

template <typename... Args>
absl::Status Disagree(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError("step plan does not fit this worker: " +
                             fmt::format(format, std::forward<Args>(args)...));
}

// Tokens of a chunk: one without ids is the token sampled last.
int ChunkRows(const internal::v1::Chunk& chunk) { return std::max(chunk.tokens_size(), 1); }

// A kind without blocks belongs to a model without layers of that kind.
absl::Status CheckCovers(const char* kind, uint32_t slot, size_t pool, int64_t covered, int end) {
  if (pool == 0 || covered >= end) return absl::OkStatus();
  return Disagree("slot {} has {} blocks for {} positions, the chunk ends at {}", slot, kind,
                  covered, end);
}

bool HasPenalties(const internal::v1::Sampling& sampling) {
  const float repetition = sampling.repetition_penalty();
  return (repetition != 0 && repetition != 1) || sampling.presence_penalty() != 0 ||
         sampling.frequency_penalty() != 0;
}

kernels::SampleParams MakeSampleParams(const internal::v1::Sampling& sampling, int position,
                                       int vocab_size) {
  kernels::SampleParams params;
  params.temperature = sampling.temperature();
  params.top_k = static_cast<int>(std::min<uint32_t>(sampling.top_k(), vocab_size));
  params.top_p = sampling.top_p();
  params.min_p = sampling.min_p();
  params.seed = sampling.seed();
  params.position = position;
  params.logprobs = sampling.logprobs();
  params.biased = !sampling.bias_tokens().empty();
  params.mask_ends = static_cast<uint32_t>(position) < sampling.first_end_position() &&
                     !sampling.end_tokens().empty();
  params.counted = HasPenalties(sampling);
  if (params.counted) {
    if (sampling.repetition_penalty() != 0) {
      params.repetition_penalty = sampling.repetition_penalty();
    }
    params.presence_penalty = sampling.presence_penalty();
    params.frequency_penalty = sampling.frequency_penalty();
  }
  return params;
}

}  // namespace

SequenceTable::SequenceTable(Limits limits)
    : limits_(std::move(limits)),
      sequences_(limits_.max_sequences),
      full_(limits_.full_blocks),
      sliding_(limits_.sliding_blocks) {}

absl::Status SequenceTable::Take(const google::protobuf::RepeatedField<uint32_t>& ids,
                                 uint32_t slot, const char* kind, Blocks& blocks,
                                 std::vector<int32_t>& table) {
  for (uint32_t id : ids) {
    if (id >= blocks.size()) {
      return Disagree("slot {} gets {} block {} of {}", slot, kind, id, blocks.size());
    }
    if (blocks[id].holders > 0) {
      return Disagree("slot {} gets {} block {}, which {} hold", slot, kind, id,
                      blocks[id].holders);
    }
    blocks[id] = {.holders = 1, .number = -1};
    table.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::Share(const google::protobuf::RepeatedField<uint32_t>& ids,
                                  uint32_t first, uint32_t slot, const char* kind, Blocks& blocks,
                                  std::vector<int32_t>& table) {
  for (uint32_t id : ids) {
    if (id >= blocks.size()) {
      return Disagree("slot {} shares {} block {} of {}", slot, kind, id, blocks.size());
    }
    const auto number = static_cast<int64_t>(first) + static_cast<int64_t>(table.size());
    if (blocks[id].number != number) {
      return Disagree("slot {} shares {} block {} as number {}, it holds number {}", slot, kind, id,
                      number, blocks[id].number);
    }
    ++blocks[id].holders;
    table.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::StatusOr<ResolvedStep> SequenceTable::Apply(const internal::v1::StepPlan& plan) {
  for (Sequence& sequence : sequences_) sequence.in_step = false;
  for (uint32_t slot : plan.freed_slots()) RETURN_IF_ERROR(Free(slot));
  ResolvedStep step;
  for (const auto& added : plan.new_sequences()) RETURN_IF_ERROR(Add(added, step));
  // A block that one chunk releases may be another's new one: nobody reads it in this step.
  for (const auto& chunk : plan.chunks()) RETURN_IF_ERROR(Release(chunk));
  for (const auto& chunk : plan.chunks()) RETURN_IF_ERROR(Append(chunk));

  for (const auto& chunk : plan.chunks()) RETURN_IF_ERROR(AddChunk(chunk, step));
  std::vector<const Sequence*> row_sequences;
  bool forced = false;
  for (const kernels::SequenceRun& run : step.runs) {
    const Sequence* sequence = &sequences_[run.slot];
    row_sequences.insert(row_sequences.end(), run.rows, sequence);
    forced |= !sequence->forced_expert_ids.empty();
  }
  if (forced) AddForced(row_sequences, step);
  return step;
}

absl::StatusOr<Sequence*> SequenceTable::Find(uint32_t slot, const char* what) {
  if (slot >= sequences_.size()) {
    return Disagree("{} names slot {} of {}", what, slot, sequences_.size());
  }
  if (!sequences_[slot].in_use) return Disagree("{} names slot {}, which is free", what, slot);
  return &sequences_[slot];
}

absl::Status SequenceTable::Free(uint32_t slot) {
  ASSIGN_OR_RETURN(Sequence * sequence, Find(slot, "a freed slot"));
  for (int32_t block : sequence->full_blocks) --full_[block].holders;
  for (int32_t block : sequence->sliding_blocks) --sliding_[block].holders;
  *sequence = Sequence();
  return absl::OkStatus();
}

absl::Status SequenceTable::Add(const internal::v1::NewSequence& added, ResolvedStep& step) {
  if (added.slot() >= sequences_.size()) {
    return Disagree("a new sequence names slot {} of {}", added.slot(), sequences_.size());
  }
  Sequence& sequence = sequences_[added.slot()];
  if (sequence.in_use) return Disagree("a new sequence names slot {}, which is used", added.slot());
  const int logprobs = added.sampling().logprobs();
  if (logprobs < -1 || logprobs > kernels::kMaxLogprobs) {
    return Disagree("slot {} wants {} log-probabilities, at most {}", added.slot(), logprobs,
                    kernels::kMaxLogprobs);
  }
  RETURN_IF_ERROR(CheckForced(added));
  RETURN_IF_ERROR(AddSlot(added, step));
  sequence.in_use = true;
  sequence.sampling = added.sampling();
  sequence.forced_expert_ids.assign(added.forced_expert_ids().begin(),
                                    added.forced_expert_ids().end());
  return AddCached(added, sequence);
}

absl::Status SequenceTable::AddCached(const internal::v1::NewSequence& added, Sequence& sequence) {
  const uint32_t slot = added.slot();
  const int64_t tokens = added.cached_tokens();
  const int64_t block = limits_.block_tokens;
  if (tokens % block != 0 || tokens >= limits_.context_length) {
    return Disagree("slot {} begins at position {}, blocks have {} tokens and the context {}", slot,
                    tokens, block, limits_.context_length);
  }
  const int64_t first_sliding = added.first_sliding_block();
  const bool whole = added.full_blocks_size() * block == tokens &&
                     (first_sliding + added.sliding_blocks_size()) * block == tokens;
  if (!whole || first_sliding * block > std::max<int64_t>(0, tokens - limits_.sliding_window + 1)) {
    return Disagree("slot {} begins at position {} with {} full and {} sliding blocks from {} on",
                    slot, tokens, added.full_blocks_size(), added.sliding_blocks_size(),
                    first_sliding);
  }
  RETURN_IF_ERROR(Share(added.full_blocks(), 0, slot, "full", full_, sequence.full_blocks));
  RETURN_IF_ERROR(Share(added.sliding_blocks(), added.first_sliding_block(), slot, "sliding",
                        sliding_, sequence.sliding_blocks));
  sequence.sliding_first = static_cast<int>(first_sliding);
  sequence.position = static_cast<int>(tokens);
  return absl::OkStatus();
}

absl::Status SequenceTable::AddSlot(const internal::v1::NewSequence& added,
                                    ResolvedStep& step) const {
  const internal::v1::Sampling& sampling = added.sampling();
  const bool counted = HasPenalties(sampling);
  const bool ends = sampling.first_end_position() > 0 && !sampling.end_tokens().empty();
  if (sampling.bias_tokens().empty() && !ends && !counted) return absl::OkStatus();
  if (sampling.bias_tokens_size() != sampling.biases_size()) {
    return Disagree("slot {} has {} biases for {} tokens", added.slot(), sampling.biases_size(),
                    sampling.bias_tokens_size());
  }
  ResolvedStep::NewSlot slot;
  slot.slot = static_cast<int>(added.slot());
  slot.biases.assign(sampling.biases().begin(), sampling.biases().end());
  slot.counted = counted;
  slot.prompt_tokens = static_cast<int>(
      std::min<uint32_t>(sampling.prompt_tokens(), static_cast<uint32_t>(limits_.context_length)));
  RETURN_IF_ERROR(
      CopyTokens(sampling.bias_tokens(), added.slot(), kernels::kMaxSlotTokens, slot.bias_tokens));
  RETURN_IF_ERROR(
      CopyTokens(sampling.end_tokens(), added.slot(), kernels::kMaxSlotTokens, slot.end_tokens));
  RETURN_IF_ERROR(CopyTokens(added.history(), added.slot(), limits_.context_length, slot.history));
  step.new_slots.push_back(std::move(slot));
  return absl::OkStatus();
}

// Ids that the vocabulary has, `most` at most.
absl::Status SequenceTable::CopyTokens(const google::protobuf::RepeatedField<uint32_t>& tokens,
                                       uint32_t slot, int most, std::vector<int32_t>& out) const {
  if (tokens.size() > most) {
    return Disagree("slot {} comes with {} tokens of a kind, at most {}", slot, tokens.size(),
                    most);
  }
  for (uint32_t token : tokens) {
    if (token >= static_cast<uint32_t>(limits_.vocab_size)) {
      return Disagree("slot {} has token {} of {}", slot, token, limits_.vocab_size);
    }
    out.push_back(static_cast<int32_t>(token));
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::CheckForced(const internal::v1::NewSequence& added) const {
  const auto& ids = added.forced_expert_ids();
  const int k = limits_.experts_per_token;
  if (ids.size() % (limits_.num_layers * k) != 0) {
    return Disagree("slot {} has {} forced expert ids, not a multiple of {} layers x {}",
                    added.slot(), ids.size(), limits_.num_layers, k);
  }
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<uint32_t>(limits_.num_experts)) {
      return Disagree("slot {} forces expert {} of {}", added.slot(), ids[i], limits_.num_experts);
    }
    const auto group = ids.begin() + i / k * k;
    if (std::find(group, ids.begin() + i, ids[i]) != ids.begin() + i) {
      return Disagree("slot {} forces expert {} twice for one token", added.slot(), ids[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::Release(const internal::v1::Chunk& chunk) {
  ASSIGN_OR_RETURN(Sequence * sequence, Find(chunk.slot(), "a chunk"));
  if (sequence->in_step) return Disagree("slot {} has two chunks in one step", chunk.slot());
  sequence->in_step = true;
  const uint32_t released = chunk.released_sliding_blocks();
  if (released == 0) return absl::OkStatus();
  if (released > sequence->sliding_blocks.size()) {
    return Disagree("slot {} releases {} sliding blocks of {}", chunk.slot(), released,
                    sequence->sliding_blocks.size());
  }
  // The chunk's first row sees positions from start - window + 1 on.
  const int64_t end = int64_t{limits_.block_tokens} * (sequence->sliding_first + released);
  const int64_t visible = int64_t{chunk.start_position()} - limits_.sliding_window + 1;
  if (end > visible) {
    return Disagree("slot {} releases positions below {}, position {} sees from {}", chunk.slot(),
                    end, chunk.start_position(), visible);
  }
  const auto begin = sequence->sliding_blocks.begin();
  for (auto block = begin; block != begin + released; ++block) --sliding_[*block].holders;
  sequence->sliding_blocks.erase(begin, begin + released);
  sequence->sliding_first += static_cast<int>(released);
  return absl::OkStatus();
}

absl::Status SequenceTable::Append(const internal::v1::Chunk& chunk) {
  ASSIGN_OR_RETURN(Sequence * sequence, Find(chunk.slot(), "a chunk"));
  RETURN_IF_ERROR(
      Take(chunk.new_full_blocks(), chunk.slot(), "full", full_, sequence->full_blocks));
  return Take(chunk.new_sliding_blocks(), chunk.slot(), "sliding", sliding_,
              sequence->sliding_blocks);
}

absl::Status SequenceTable::AddChunk(const internal::v1::Chunk& chunk, ResolvedStep& step) {
  ASSIGN_OR_RETURN(Sequence * sequence, Find(chunk.slot(), "a chunk"));
  const int rows = ChunkRows(chunk);
  const int first_row = static_cast<int>(step.token_ids.size());
  if (chunk.start_position() != static_cast<uint32_t>(sequence->position)) {
    return Disagree("slot {} is at position {}, the chunk starts at {}", chunk.slot(),
                    sequence->position, chunk.start_position());
  }
  const int end = sequence->position + rows;
  if (end > limits_.context_length) {
    return Disagree("slot {} would reach position {}, the context is {}", chunk.slot(), end,
                    limits_.context_length);
  }
  if (first_row + rows > limits_.max_step_tokens) {
    return Disagree("the step has more than {} rows", limits_.max_step_tokens);
  }
  const int64_t block = limits_.block_tokens;
  const int64_t full_end = block * static_cast<int64_t>(sequence->full_blocks.size());
  const int64_t sliding_end =
      block * (sequence->sliding_first + static_cast<int64_t>(sequence->sliding_blocks.size()));
  RETURN_IF_ERROR(CheckCovers("full", chunk.slot(), full_.size(), full_end, end));
  RETURN_IF_ERROR(CheckCovers("sliding", chunk.slot(), sliding_.size(), sliding_end, end));

  RETURN_IF_ERROR(AddRows(chunk, *sequence, step));
  RETURN_IF_ERROR(AddReads(chunk, first_row, rows, step));
  RETURN_IF_ERROR(AddTargets(chunk, first_row, rows, step));
  step.runs.push_back({static_cast<int>(chunk.slot()), first_row, rows, sequence->position,
                       sequence->full_blocks, sequence->sliding_blocks, sequence->sliding_first});
  if (chunk.sample()) {
    step.sample_rows.push_back(first_row + rows - 1);
    step.sample_params.push_back(MakeSampleParams(sequence->sampling, end, limits_.vocab_size));
    step.sample_slots.push_back(static_cast<int32_t>(chunk.slot()));
  }
  NoteWhole(*sequence, end);
  sequence->position = end;
  sequence->sampled_position = chunk.sample() ? end : -1;
  return absl::OkStatus();
}

void SequenceTable::NoteWhole(const Sequence& sequence, int end) {
  const int block = limits_.block_tokens;
  for (int number = sequence.position / block; number < end / block; ++number) {
    if (!full_.empty()) full_[sequence.full_blocks[number]].number = number;
    if (sliding_.empty()) continue;
    sliding_[sequence.sliding_blocks[number - sequence.sliding_first]].number = number;
  }
}

absl::Status SequenceTable::AddRows(const internal::v1::Chunk& chunk, const Sequence& sequence,
                                    ResolvedStep& step) const {
  for (uint32_t token : chunk.tokens()) {
    if (token >= static_cast<uint32_t>(limits_.vocab_size)) {
      return Disagree("slot {} has token {} of {}", chunk.slot(), token, limits_.vocab_size);
    }
    step.token_ids.push_back(static_cast<int32_t>(token));
  }
  if (chunk.tokens().empty()) {
    if (sequence.sampled_position != sequence.position) {
      return Disagree("slot {} continues at position {}, for which no token was sampled",
                      chunk.slot(), sequence.position);
    }
    step.token_ids.push_back(-1 - static_cast<int32_t>(chunk.slot()));
  }
  for (int row = 0; row < ChunkRows(chunk); ++row) {
    step.positions.push_back(sequence.position + row);
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::AddReads(const internal::v1::Chunk& chunk, int first_row, int rows,
                                     ResolvedStep& step) const {
  for (const internal::v1::HeadWant& want : chunk.heads()) {
    if (want.head() >= limits_.head_labels.size()) {
      return Disagree("slot {} wants head {} of {}", chunk.slot(), want.head(),
                      limits_.head_labels.size());
    }
    if (want.count() == 0 || uint64_t{want.first()} + want.count() > static_cast<uint64_t>(rows)) {
      return Disagree("slot {} wants head rows [{}, {}) of a chunk of {}", chunk.slot(),
                      want.first(), uint64_t{want.first()} + want.count(), rows);
    }
    ResolvedStep::HeadRead read;
    read.slot = static_cast<int>(chunk.slot());
    read.head = static_cast<int>(want.head());
    read.first_position = static_cast<int>(chunk.start_position() + want.first());
    for (uint32_t i = 0; i < want.count(); ++i) {
      read.rows.push_back(first_row + static_cast<int>(want.first() + i));
    }
    step.head_reads.push_back(std::move(read));
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::AddTargets(const internal::v1::Chunk& chunk, int first_row, int rows,
                                       ResolvedStep& step) const {
  const internal::v1::LogprobWant& want = chunk.logprobs();
  if (want.targets().empty()) return absl::OkStatus();
  const uint64_t end = uint64_t{want.first()} + static_cast<uint64_t>(want.targets_size());
  if (end > static_cast<uint64_t>(rows) || want.top() > kernels::kMaxLogprobs) {
    return Disagree("slot {} wants log-probabilities of rows [{}, {}) of {}, {} of each",
                    chunk.slot(), want.first(), end, rows, want.top());
  }
  ResolvedStep::TargetRead read;
  read.slot = static_cast<int>(chunk.slot());
  read.first_position = static_cast<int>(chunk.start_position() + want.first());
  read.top = static_cast<int>(want.top());
  RETURN_IF_ERROR(CopyTokens(want.targets(), chunk.slot(), rows, read.targets));
  for (int i = 0; i < want.targets_size(); ++i) {
    read.rows.push_back(first_row + static_cast<int>(want.first()) + i);
  }
  step.target_reads.push_back(std::move(read));
  return absl::OkStatus();
}

void SequenceTable::AddForced(const std::vector<const Sequence*>& row_sequences,
                              ResolvedStep& step) const {
  const size_t k = limits_.experts_per_token;
  const size_t layers = limits_.num_layers;
  step.forced.assign(layers, std::vector<int32_t>(row_sequences.size() * k, -1));
  for (size_t row = 0; row < row_sequences.size(); ++row) {
    const std::vector<int32_t>& ids = row_sequences[row]->forced_expert_ids;
    const size_t base = static_cast<size_t>(step.positions[row]) * layers * k;
    if (base >= ids.size()) continue;  // past the forced positions the router decides
    for (size_t layer = 0; layer < layers; ++layer) {
      std::copy_n(ids.begin() + base + layer * k, k, step.forced[layer].begin() + row * k);
    }
  }
}

}  // namespace conclave::worker
