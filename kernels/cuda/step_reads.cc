#include "kernels/cuda/step_reads.h"

#include <cstring>

#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/device.h"

namespace conclave::kernels::cuda {

StepReads::~StepReads() {
  for (Step& step : steps_) {
    if (step.done != nullptr) cudaEventDestroy(step.done);
  }
}

absl::Status StepReads::Allocate(int64_t step_bytes) {
  for (Step& step : steps_) {
    ASSIGN_OR_RETURN(step.area, AllocatePinned(step_bytes));
    RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming), "cudaEventCreate"));
  }
  return absl::OkStatus();
}

absl::Status StepReads::Start(std::span<const Tensor> sources, cudaStream_t stream) {
  CONCLAVE_CHECK(unfinished_ < kMaxStepsAhead && sources.size() <= kMaxReads);
  Step& step = steps_[next_];
  step.count = static_cast<int>(sources.size());
  auto* to = static_cast<std::byte*>(step.area.memory.get());
  int64_t left = step.area.bytes;
  for (int i = 0; i < step.count; ++i) {
    step.bytes[i] = sources[i].bytes();
    left -= step.bytes[i];
    CONCLAVE_CHECK(left >= 0);
    RETURN_IF_ERROR(ToStatus(
        cudaMemcpyAsync(to, sources[i].data, step.bytes[i], cudaMemcpyDeviceToHost, stream),
        "reading a step"));
    to += step.bytes[i];
  }
  RETURN_IF_ERROR(ToStatus(cudaEventRecord(step.done, stream), "reading a step"));
  next_ = (next_ + 1) % kMaxStepsAhead;
  ++unfinished_;
  return absl::OkStatus();
}

bool StepReads::Done() const {
  if (unfinished_ == 0) return true;
  // A failure is done, too: Take reports it.
  return cudaEventQuery(steps_[(next_ + kMaxStepsAhead - unfinished_) % kMaxStepsAhead].done) !=
         cudaErrorNotReady;
}

absl::Status StepReads::Take(std::span<void* const> hosts) {
  CONCLAVE_CHECK(unfinished_ > 0);
  Step& step = Oldest();
  --unfinished_;
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(step.done), "the step's kernels"));
  CONCLAVE_CHECK(static_cast<int>(hosts.size()) == step.count);
  const auto* from = static_cast<const std::byte*>(step.area.memory.get());
  for (int i = 0; i < step.count; ++i) {
    std::memcpy(hosts[i], from, step.bytes[i]);
    from += step.bytes[i];
  }
  return absl::OkStatus();
}

}  // namespace conclave::kernels::cuda
