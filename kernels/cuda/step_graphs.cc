#include "kernels/cuda/step_graphs.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"
#include "model/row_bucket.h"

namespace conclave::kernels::cuda {
namespace {

constexpr unsigned kSmallestContext = 1024;

// One token for each run, and each is sampled, in order. Also no run at all: an idle rank.
bool CanRecord(const StepBatch& batch, const StepShape& shape) {
  if (batch.record_key == 0 || shape.rows > kMaxRecordedRows) return false;
  if (shape.max_run_rows > 1 || shape.samples != shape.rows) return false;
  for (int i = 0; i < shape.samples; ++i) {
    if (batch.sample_rows[i] != i) return false;
  }
  return true;
}

}  // namespace

StepGraphs::~StepGraphs() { Clear(); }

void StepGraphs::Clear() {
  for (auto& [key, entry] : entries_) {
    if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
  }
  entries_.clear();
  current_ = nullptr;
  use_ = Use::kEager;
  graphs_ = 0;
}

StepShape StepGraphs::Begin(const StepBatch& batch) {
  CONCLAVE_CHECK(!capturing_);
  use_ = Use::kEager;
  current_ = nullptr;
  StepShape shape = ShapeOf(batch);
  if (!CanRecord(batch, shape)) return shape;
  const int bucket = std::min(model::RowBucket(shape.rows), max_rows_);
  shape.rows = shape.runs = shape.samples = bucket;
  shape.max_context = static_cast<int>(
      std::max(kSmallestContext, std::bit_ceil(static_cast<unsigned>(shape.max_context))));
  current_ = &entries_[{batch.record_key, bucket, shape.max_context, shape.adjusts}];
  current_->last_step = ++steps_;
  if (current_->graph != nullptr) {
    use_ = Use::kReplay;
  } else if (++current_->steps > 1 && record_) {
    use_ = Use::kRecord;
  }
  return shape;
}

absl::Status StepGraphs::StartCapture(cudaStream_t stream) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                           "recording a step"));
  capturing_ = true;
  return absl::OkStatus();
}

absl::Status StepGraphs::Submit(cudaStream_t stream, uint64_t launches) {
  if (capturing_) {
    capturing_ = false;
    cudaGraph_t recorded = nullptr;
    RETURN_IF_ERROR(ToStatus(cudaStreamEndCapture(stream, &recorded), "recording a step"));
    if (graphs_ == kMaxGraphs) DropOldest();
    const cudaError_t made = cudaGraphInstantiate(&current_->graph, recorded, 0);
    cudaGraphDestroy(recorded);
    RETURN_IF_ERROR(ToStatus(made, "making a graph of a step"));
    current_->launches = launches;
    ++graphs_;
  }
  if (current_ == nullptr || current_->graph == nullptr) return absl::OkStatus();
  return ToStatus(cudaGraphLaunch(current_->graph, stream), "launching a recorded step");
}

void StepGraphs::Abandon(cudaStream_t stream) {
  if (!capturing_) return;
  capturing_ = false;
  cudaGraph_t recorded = nullptr;
  cudaStreamEndCapture(stream, &recorded);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
}

void StepGraphs::DropOldest() {
  Entry* oldest = nullptr;
  for (auto& [key, entry] : entries_) {
    if (entry.graph == nullptr) continue;
    if (oldest == nullptr || entry.last_step < oldest->last_step) oldest = &entry;
  }
  cudaGraphExecDestroy(oldest->graph);
  oldest->graph = nullptr;
  --graphs_;
}

}  // namespace conclave::kernels::cuda
