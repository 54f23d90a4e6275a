#include "kernels/cuda/step_stage.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"

namespace conclave::kernels::cuda {
namespace {

int64_t Align(int64_t bytes) {
  constexpr int64_t kAlignment = 256;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Appends a block table, returns the place of its first entry.
int32_t Append(std::span<const int32_t> table, int64_t limit, int32_t* blocks, int64_t& end) {
  CONCLAVE_CHECK(end + static_cast<int64_t>(table.size()) <= limit);
  const int64_t begin = end;
  std::copy(table.begin(), table.end(), blocks + begin);
  end += static_cast<int64_t>(table.size());
  return static_cast<int32_t>(begin);
}

}  // namespace

StepShape ShapeOf(const StepBatch& batch) {
  StepShape shape;
  shape.rows = batch.rows();
  shape.runs = static_cast<int>(batch.runs.size());
  shape.samples = static_cast<int>(batch.sample_rows.size());
  for (const SequenceRun& run : batch.runs) {
    shape.max_context = std::max(shape.max_context, run.start_position + run.rows);
    shape.max_run_rows = std::max(shape.max_run_rows, run.rows);
  }
  for (const SampleParams& row : batch.sample_params) shape.adjusts |= row.adjusts();
  return shape;
}

StepStage::StepStage(const StepLimits& limits) : limits_(limits) {
  int64_t end = 0;
  const auto place = [&](int64_t& offset, int64_t count, size_t size) {
    offset = end;
    end += Align(count * static_cast<int64_t>(size));
  };
  place(layout_.token_ids, limits.max_rows, sizeof(int32_t));
  place(layout_.positions, limits.max_rows, sizeof(int32_t));
  place(layout_.run_of_row, limits.max_rows, sizeof(int32_t));
  place(layout_.runs, limits.max_runs, sizeof(RunView));
  place(layout_.sample_rows, limits.max_samples, sizeof(int32_t));
  place(layout_.sample_slots, limits.max_samples, sizeof(int32_t));
  place(layout_.sample_params, limits.max_samples, sizeof(SampleRow));
  place(layout_.blocks, limits.max_blocks, sizeof(int32_t));
  place(layout_.arguments, limits.argument_bytes, 1);
  layout_.end = end;
  argument_end_ = layout_.arguments;
}

absl::StatusOr<std::unique_ptr<StepStage>> StepStage::Create(const StepLimits& limits) {
  std::unique_ptr<StepStage> out(new StepStage(limits));
  ASSIGN_OR_RETURN(out->device_, AllocateDevice(out->layout_.end));
  for (int i = 0; i < 2; ++i) {
    ASSIGN_OR_RETURN(out->host_[i], AllocatePinned(out->layout_.end));
    RETURN_IF_ERROR(ToStatus(cudaEventCreateWithFlags(&out->done_[i], cudaEventDisableTiming),
                             "cudaEventCreate"));
  }
  return out;
}

StepStage::~StepStage() {
  for (cudaEvent_t event : done_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
}

void StepStage::WriteRows(const StepBatch& batch, const StepShape& shape) {
  const int rows = batch.rows();
  CONCLAVE_CHECK(rows <= shape.rows && shape.rows <= limits_.max_rows);
  CONCLAVE_CHECK(batch.positions.size() == batch.token_ids.size());
  auto* token_ids = host<int32_t>(layout_.token_ids);
  auto* positions = host<int32_t>(layout_.positions);
  std::copy(batch.token_ids.begin(), batch.token_ids.end(), token_ids);
  std::copy(batch.positions.begin(), batch.positions.end(), positions);
  std::fill_n(token_ids + rows, shape.rows - rows, 0);
  std::fill_n(positions + rows, shape.rows - rows, 0);
  std::fill_n(host<int32_t>(layout_.run_of_row) + rows, shape.rows - rows, -1);
}

int64_t StepStage::WriteRuns(const StepBatch& batch, const StepShape& shape) {
  const auto count = static_cast<int>(batch.runs.size());
  CONCLAVE_CHECK(count <= shape.runs && shape.runs <= limits_.max_runs);
  auto* run_of_row = host<int32_t>(layout_.run_of_row);
  auto* runs = host<RunView>(layout_.runs);
  auto* blocks = host<int32_t>(layout_.blocks);
  int64_t block_end = 0;
  int covered = 0;
  for (int i = 0; i < count; ++i) {
    const SequenceRun& run = batch.runs[i];
    CONCLAVE_CHECK(run.first_row == covered && run.rows <= batch.rows() - covered);
    std::fill_n(run_of_row + covered, run.rows, i);
    covered += run.rows;
    RunView& to = runs[i];
    to.slot = run.slot;
    to.first_row = run.first_row;
    to.rows = run.rows;
    to.start_position = run.start_position;
    to.full_offset = Append(run.full_blocks, limits_.max_blocks, blocks, block_end);
    to.sliding_offset = Append(run.sliding_blocks, limits_.max_blocks, blocks, block_end);
    to.sliding_first = run.sliding_first;
  }
  CONCLAVE_CHECK(covered == batch.rows());
  std::fill_n(runs + count, shape.runs - count, RunView{});
  return block_end;
}

void StepStage::WriteSamples(const StepBatch& batch, const StepShape& shape) {
  const auto count = static_cast<int>(batch.sample_rows.size());
  CONCLAVE_CHECK(count <= shape.samples && shape.samples <= limits_.max_samples);
  CONCLAVE_CHECK(batch.sample_params.size() == batch.sample_rows.size() &&
                 batch.sample_slots.size() == batch.sample_rows.size());
  auto* rows = host<int32_t>(layout_.sample_rows);
  auto* slots = host<int32_t>(layout_.sample_slots);
  auto* params = host<SampleRow>(layout_.sample_params);
  for (int i = 0; i < count; ++i) {
    CONCLAVE_CHECK(batch.sample_rows[i] >= 0 && batch.sample_rows[i] < batch.rows());
    rows[i] = batch.sample_rows[i];
    slots[i] = batch.sample_slots[i];
    const SampleParams& from = batch.sample_params[i];
    params[i] = {.temperature = from.temperature,
                 .top_k = from.top_k,
                 .top_p = from.top_p,
                 .min_p = from.min_p,
                 .seed = from.seed,
                 .position = from.position,
                 .logprobs = from.logprobs,
                 .biased = from.biased,
                 .counted = from.counted,
                 .mask_ends = from.mask_ends,
                 .penalties = {.repetition = from.repetition_penalty,
                               .presence = from.presence_penalty,
                               .frequency = from.frequency_penalty}};
  }
  const int padding = shape.samples - count;
  std::fill_n(rows + count, padding, 0);
  std::fill_n(slots + count, padding, -1);
  std::fill_n(params + count, padding, SampleRow{.temperature = 0});
}

StepView StepStage::Begin(const StepBatch& batch, const StepShape& shape, cudaStream_t stream) {
  cudaEventRecord(done_[current_], stream);
  current_ ^= 1;
  cudaEventSynchronize(done_[current_]);
  argument_end_ = layout_.arguments;

  WriteRows(batch, shape);
  const int64_t block_end = WriteRuns(batch, shape);
  WriteSamples(batch, shape);
  cudaMemcpyAsync(device<void>(0), host<void>(0),
                  layout_.blocks + block_end * static_cast<int64_t>(sizeof(int32_t)),
                  cudaMemcpyHostToDevice, stream);
  return {.rows = shape.rows,
          .runs = shape.runs,
          .max_context = shape.max_context,
          .max_run_rows = shape.max_run_rows,
          .token_ids = device<int32_t>(layout_.token_ids),
          .positions = device<int32_t>(layout_.positions),
          .run_of_row = device<int32_t>(layout_.run_of_row),
          .run = device<RunView>(layout_.runs),
          .blocks = device<int32_t>(layout_.blocks),
          .sample_rows = device<int32_t>(layout_.sample_rows),
          .sample_params = device<SampleRow>(layout_.sample_params),
          .sample_slots = device<int32_t>(layout_.sample_slots),
          .samples = shape.samples,
          .adjusts = shape.adjusts};
}

const void* StepStage::Put(const void* host_data, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return nullptr;
  CONCLAVE_CHECK(bytes <= limits_.argument_bytes);
  if (argument_end_ + bytes > layout_.end) {
    cudaStreamSynchronize(stream);
    argument_end_ = layout_.arguments;
  }
  const int64_t at = argument_end_;
  argument_end_ += (bytes + 15) / 16 * 16;
  std::memcpy(host<void>(at), host_data, bytes);
  cudaMemcpyAsync(device<void>(at), host<void>(at), bytes, cudaMemcpyHostToDevice, stream);
  return device<void>(at);
}

}  // namespace conclave::kernels::cuda
