#include "worker/transformer_output.h"

#include <algorithm>
#include <numeric>

#include "base/status_macros.h"
#include "model/memory_plan.h"
#include "model/placement.h"
#include "worker/transformer_buffers.h"

namespace conclave::worker {
namespace {

using model::kLogitTileRows;

kernels::SampleOutput OutputRows(const kernels::SampleOutput& output, int64_t begin, int64_t rows) {
  return {output.tokens.Rows(begin, rows), output.logprobs.Rows(begin, rows),
          output.top_tokens.Rows(begin, rows), output.top_logprobs.Rows(begin, rows)};
}

}  // namespace

int MaxLogprobs(std::span<const kernels::SampleParams> params) {
  int most = -1;
  for (const kernels::SampleParams& row : params) most = std::max(most, row.logprobs);
  return most;
}

std::vector<int64_t> SplitRows(int64_t rows, int ranks) {
  std::vector<int64_t> begin(ranks + 1);
  for (int rank = 0; rank <= ranks; ++rank) begin[rank] = rows * rank / ranks;
  return begin;
}

absl::StatusOr<TransformerOutput> TransformerOutput::Create(const model::Config& config,
                                                            const RankWeights& weights,
                                                            int max_sequences, kernels::Ops& ops,
                                                            Communicator* group) {
  TransformerOutput output(config, weights, ops, group);
  RETURN_IF_ERROR(output.Allocate(max_sequences));
  return output;
}

absl::Status TransformerOutput::Allocate(int max_sequences) {
  using kernels::DType;
  const auto make = [&](DType dtype, int64_t rows, int64_t cols) {
    return AllocateTensor(*ops_, dtype, rows, cols, memory_);
  };
  tile_rows_ = std::min(kLogitTileRows, max_sequences);
  if (weights_->lm_head.data != nullptr) {
    ASSIGN_OR_RETURN(logits_, make(DType::kF32, tile_rows_, weights_->lm_head.rows));
    if (group_ != nullptr) {
      const int64_t share = (tile_rows_ + group_->size() - 1) / group_->size();
      ASSIGN_OR_RETURN(received_, make(DType::kF32, share, config_->vocab_size));
      ASSIGN_OR_RETURN(joined_, make(DType::kF32, share, config_->vocab_size));
    }
  }
  int64_t labels = 0;
  for (const HeadWeights& head : weights_->heads) labels = std::max(labels, head.weight.rows);
  if (labels > 0) {
    ASSIGN_OR_RETURN(head_logits_, make(DType::kF32, kLogitTileRows, labels));
  }
  ASSIGN_OR_RETURN(sampled_.tokens, make(DType::kI32, max_sequences, 1));
  ASSIGN_OR_RETURN(sampled_.logprobs, make(DType::kF32, max_sequences, 1));
  ASSIGN_OR_RETURN(sampled_.top_tokens, make(DType::kI32, max_sequences, kernels::kMaxLogprobs));
  ASSIGN_OR_RETURN(sampled_.top_logprobs, make(DType::kF32, max_sequences, kernels::kMaxLogprobs));
  return absl::OkStatus();
}

int64_t TransformerOutput::bytes() const { return TotalBytes(memory_); }

absl::Status TransformerOutput::Sample(int samples, int logprobs, kernels::Tensor x) {
  if (samples == 0) return absl::OkStatus();
  if (weights_->lm_head.data == nullptr) {
    return absl::InternalError("step plan samples tokens, but the checkpoint has no lm_head");
  }
  for (int begin = 0; begin < samples; begin += tile_rows_) {
    RETURN_IF_ERROR(SampleTile(x, begin, std::min(tile_rows_, samples - begin), logprobs));
  }
  ops_->StoreSampled(sampled_.tokens.Rows(0, samples));
  return absl::OkStatus();
}

absl::Status TransformerOutput::SampleTile(kernels::Tensor x, int begin, int rows, int logprobs) {
  kernels::Tensor logits = logits_.Rows(0, rows);
  ops_->SampledLogits(weights_->final_norm, weights_->lm_head, x, begin, logits);
  if (group_ == nullptr) {
    ops_->Sample(logits, begin, OutputRows(sampled_, begin, rows));
    return absl::OkStatus();
  }
  const std::vector<int64_t> row_begin = SplitRows(rows, group_->size());
  const int64_t first = begin + row_begin[group_->rank()];
  const int64_t share = begin + row_begin[group_->rank() + 1] - first;
  ASSIGN_OR_RETURN(logits, Transpose(logits, row_begin));
  ops_->Sample(logits, static_cast<int>(first), OutputRows(sampled_, first, share));
  return Gather(begin, rows, logprobs, row_begin);
}

absl::StatusOr<kernels::Tensor> TransformerOutput::Transpose(kernels::Tensor logits,
                                                             std::span<const int64_t> row_begin) {
  const int ranks = group_->size();
  const int64_t share = row_begin[group_->rank() + 1] - row_begin[group_->rank()];
  std::vector<int64_t> send_bytes(ranks), send_offsets(ranks);
  std::vector<int64_t> recv_bytes(ranks), recv_offsets(ranks);
  std::vector<kernels::Tensor> blocks(ranks);
  int64_t received = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const kernels::Tensor sent =
        logits.Rows(row_begin[rank], row_begin[rank + 1] - row_begin[rank]);
    send_bytes[rank] = sent.bytes();
    send_offsets[rank] = static_cast<std::byte*>(sent.data) - static_cast<std::byte*>(logits.data);
    kernels::Tensor& block = blocks[rank];
    block = {received_.as<std::byte>() + received, kernels::DType::kF32, share,
             model::VocabRange(*config_, ranks, rank).size()};
    recv_bytes[rank] = block.bytes();
    recv_offsets[rank] = received;
    received += block.bytes();
  }
  RETURN_IF_ERROR(group_->AllToAllV(logits.data, send_bytes, send_offsets, received_.data,
                                    recv_bytes, recv_offsets));
  const kernels::Tensor whole = joined_.Rows(0, share);
  ops_->JoinColumns(blocks, whole);
  return whole;
}

absl::Status TransformerOutput::Gather(int begin, int rows, int logprobs,
                                       std::span<const int64_t> row_begin) {
  const kernels::SampleOutput tile = OutputRows(sampled_, begin, rows);
  RETURN_IF_ERROR(group_->AllGatherRows(tile.tokens, row_begin));
  if (logprobs < 0) return absl::OkStatus();
  return GatherLogprobs(tile, logprobs, row_begin);
}

absl::Status TransformerOutput::GatherLogprobs(const kernels::SampleOutput& tile, int logprobs,
                                               std::span<const int64_t> row_begin) {
  RETURN_IF_ERROR(group_->AllGatherRows(tile.logprobs, row_begin));
  if (logprobs == 0) return absl::OkStatus();
  RETURN_IF_ERROR(group_->AllGatherRows(tile.top_tokens, row_begin));
  return group_->AllGatherRows(tile.top_logprobs, row_begin);
}

// What a step's samples bring to the host: `sources[i]` goes to `places[i]`.
struct TransformerOutput::HostSampled {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
  std::vector<kernels::Tensor> sources;
  std::vector<void*> places;
};

TransformerOutput::HostSampled TransformerOutput::RoomFor(const ResolvedStep& step) const {
  HostSampled host;
  const auto rows = static_cast<int64_t>(step.sample_rows.size());
  if (rows == 0) return host;
  const int logprobs = MaxLogprobs(step.sample_params);
  const kernels::SampleOutput source = OutputRows(sampled_, 0, rows);
  const auto add = [&](kernels::Tensor from, auto& to) {
    to.resize(from.rows * from.cols);
    host.sources.push_back(from);
    host.places.push_back(to.data());
  };
  add(source.tokens, host.tokens);
  if (logprobs >= 0) add(source.logprobs, host.logprobs);
  if (logprobs > 0) {
    add(source.top_tokens, host.top_tokens);
    add(source.top_logprobs, host.top_logprobs);
  }
  return host;
}

std::vector<SampledToken> TransformerOutput::ReadSampled(const ResolvedStep& step) {
  const HostSampled host = RoomFor(step);
  for (size_t i = 0; i < host.sources.size(); ++i) ops_->Read(host.sources[i], host.places[i]);
  return Assemble(step, host);
}

void TransformerOutput::StartSampled(const ResolvedStep& step) {
  ops_->StartReads(RoomFor(step).sources);
}

absl::StatusOr<std::vector<SampledToken>> TransformerOutput::FinishSampled(
    const ResolvedStep& step) {
  const HostSampled host = RoomFor(step);
  RETURN_IF_ERROR(ops_->FinishReads(host.places));
  return Assemble(step, host);
}

std::vector<SampledToken> TransformerOutput::Assemble(const ResolvedStep& step,
                                                      const HostSampled& host) const {
  const auto rows = static_cast<int64_t>(step.sample_rows.size());
  std::vector<SampledToken> out(rows);
  for (int64_t row = 0; row < rows; ++row) {
    const kernels::SampleParams& params = step.sample_params[row];
    SampledToken& sampled = out[row];
    sampled.slot = step.sample_slots[row];
    sampled.position = params.position;
    sampled.token = host.tokens[row];
    if (params.logprobs >= 0) sampled.logprob = host.logprobs[row];
    for (int i = 0; i < std::min(params.logprobs, config_->vocab_size); ++i) {
      const int64_t at = row * kernels::kMaxLogprobs + i;
      sampled.top.emplace_back(host.top_tokens[at], host.top_logprobs[at]);
    }
  }
  return out;
}

std::vector<HeadOutput> TransformerOutput::ReadHeads(const ResolvedStep& step, kernels::Tensor x) {
  std::vector<HeadOutput> out;
  for (const ResolvedStep::HeadRead& read : step.head_reads) {
    const HeadWeights& head = weights_->heads[read.head];
    const int64_t labels = head.weight.rows;
    const int rows = static_cast<int>(read.rows.size());
    HeadOutput result{read.slot, read.head, read.first_position, {}};
    result.logits.resize(rows * labels);
    for (int begin = 0; begin < rows; begin += kLogitTileRows) {
      const int count = std::min(kLogitTileRows, rows - begin);
      const kernels::Tensor logits = {head_logits_.data, kernels::DType::kF32, count, labels};
      ops_->HeadLogits(weights_->final_norm, head.weight, head.bias, x,
                       std::span(read.rows).subspan(begin, count), logits);
      ops_->Read(logits, result.logits.data() + begin * labels);
    }
    out.push_back(std::move(result));
  }
  return out;
}

absl::StatusOr<std::vector<TargetOutput>> TransformerOutput::ReadTargets(const ResolvedStep& step,
                                                                         kernels::Tensor x,
                                                                         bool report) {
  std::vector<TargetOutput> out;
  if (!step.target_reads.empty() && weights_->lm_head.data == nullptr) {
    return absl::InternalError("step plan reads log-probabilities, but there is no lm_head");
  }
  for (const ResolvedStep::TargetRead& read : step.target_reads) {
    TargetOutput result;
    result.slot = read.slot;
    result.first_position = read.first_position;
    result.top = std::min(read.top, config_->vocab_size);
    const int rows = static_cast<int>(read.rows.size());
    for (int begin = 0; begin < rows; begin += tile_rows_) {
      const int count = std::min(tile_rows_, rows - begin);
      RETURN_IF_ERROR(TargetTile(x, std::span(read.rows).subspan(begin, count),
                                 std::span(read.targets).subspan(begin, count), result.top));
      if (report) AppendTargets(count, result);
    }
    if (report) out.push_back(std::move(result));
  }
  return out;
}

// Into the first rows of sampled_, which has been read.
absl::Status TransformerOutput::TargetTile(kernels::Tensor x, std::span<const int32_t> rows,
                                           std::span<const int32_t> targets, int top) {
  const auto count = static_cast<int64_t>(rows.size());
  kernels::Tensor logits = logits_.Rows(0, count);
  ops_->Logits(weights_->final_norm, weights_->lm_head, x, rows, logits);
  if (group_ == nullptr) {
    ops_->TargetLogprobs(logits, targets, top, OutputRows(sampled_, 0, count));
    return absl::OkStatus();
  }
  const std::vector<int64_t> row_begin = SplitRows(count, group_->size());
  const int64_t first = row_begin[group_->rank()];
  const int64_t share = row_begin[group_->rank() + 1] - first;
  ASSIGN_OR_RETURN(logits, Transpose(logits, row_begin));
  ops_->TargetLogprobs(logits, targets.subspan(first, share), top,
                       OutputRows(sampled_, first, share));
  return GatherLogprobs(OutputRows(sampled_, 0, count), top, row_begin);
}

void TransformerOutput::AppendTargets(int rows, TargetOutput& out) {
  const kernels::SampleOutput source = OutputRows(sampled_, 0, rows);
  const size_t before = out.logprobs.size();
  out.logprobs.resize(before + rows);
  ops_->Read(source.logprobs, out.logprobs.data() + before);
  if (out.top == 0) return;
  std::vector<int32_t> tokens(int64_t{rows} * kernels::kMaxLogprobs);
  std::vector<float> logprobs(tokens.size());
  ops_->Read(source.top_tokens, tokens.data());
  ops_->Read(source.top_logprobs, logprobs.data());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * kernels::kMaxLogprobs;
    out.top_tokens.insert(out.top_tokens.end(), tokens.begin() + at, tokens.begin() + at + out.top);
    out.top_logprobs.insert(out.top_logprobs.end(), logprobs.begin() + at,
                            logprobs.begin() + at + out.top);
  }
}

std::vector<float> TransformerOutput::ReadLogits(kernels::Tensor x) {
  const int64_t vocab = logits_.cols;
  std::vector<int32_t> rows(x.rows);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> out(x.rows * vocab);
  if (vocab == 0) return out;
  for (int begin = 0; begin < x.rows; begin += tile_rows_) {
    const int count = std::min<int>(tile_rows_, static_cast<int>(x.rows) - begin);
    const kernels::Tensor logits = logits_.Rows(0, count);
    ops_->Logits(weights_->final_norm, weights_->lm_head, x, std::span(rows).subspan(begin, count),
                 logits);
    ops_->Read(logits, out.data() + begin * vocab);
  }
  return out;
}

}  // namespace conclave::worker
