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

StepStage::StepStage(const StepLimits& limits) : limits_(limits) {
  const int64_t rows = Align(int64_t{limits.max_rows} * sizeof(int32_t));
  layout_.token_ids = 0;
  layout_.positions = rows;
  layout_.run_of_row = 2 * rows;
  layout_.runs = 3 * rows;
  layout_.blocks = layout_.runs + Align(int64_t{limits.max_runs} * sizeof(RunView));
  layout_.arguments = layout_.blocks + Align(limits.max_blocks * sizeof(int32_t));
  layout_.end = layout_.arguments + Align(limits.argument_bytes);
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

StepView StepStage::Begin(const StepBatch& batch, cudaStream_t stream) {
  cudaEventRecord(done_[current_], stream);
  current_ ^= 1;
  cudaEventSynchronize(done_[current_]);
  argument_end_ = layout_.arguments;

  const int rows = batch.rows();
  CONCLAVE_CHECK(rows <= limits_.max_rows && batch.positions.size() == batch.token_ids.size());
  CONCLAVE_CHECK(static_cast<int64_t>(batch.runs.size()) <= limits_.max_runs);
  auto* run_of_row = reinterpret_cast<int32_t*>(host() + layout_.run_of_row);
  auto* runs = reinterpret_cast<RunView*>(host() + layout_.runs);
  auto* blocks = reinterpret_cast<int32_t*>(host() + layout_.blocks);
  StepView view;
  view.rows = rows;
  view.runs = static_cast<int>(batch.runs.size());
  std::copy(batch.token_ids.begin(), batch.token_ids.end(),
            reinterpret_cast<int32_t*>(host() + layout_.token_ids));
  std::copy(batch.positions.begin(), batch.positions.end(),
            reinterpret_cast<int32_t*>(host() + layout_.positions));
  int64_t block_end = 0;
  int covered = 0;
  for (int i = 0; i < view.runs; ++i) {
    const SequenceRun& run = batch.runs[i];
    CONCLAVE_CHECK(run.first_row == covered && run.rows <= rows - covered);
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
    view.max_context = std::max(view.max_context, run.start_position + run.rows);
    view.max_run_rows = std::max(view.max_run_rows, run.rows);
  }
  CONCLAVE_CHECK(covered == rows);
  cudaMemcpyAsync(device(), host(), layout_.blocks + block_end * sizeof(int32_t),
                  cudaMemcpyHostToDevice, stream);
  view.token_ids = reinterpret_cast<const int32_t*>(device() + layout_.token_ids);
  view.positions = reinterpret_cast<const int32_t*>(device() + layout_.positions);
  view.run_of_row = reinterpret_cast<const int32_t*>(device() + layout_.run_of_row);
  view.run = reinterpret_cast<const RunView*>(device() + layout_.runs);
  view.blocks = reinterpret_cast<const int32_t*>(device() + layout_.blocks);
  return view;
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
  std::memcpy(host() + at, host_data, bytes);
  cudaMemcpyAsync(device() + at, host() + at, bytes, cudaMemcpyHostToDevice, stream);
  return device() + at;
}

}  // namespace conclave::kernels::cuda
