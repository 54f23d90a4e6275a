#include "coordinator/scheduler_options.h"

#include <fmt/format.h>

#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

absl::Status CheckRange(const char* name, int value, int low, int high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}: it must lie in [{}, {}]", name, value, low, high));
}

// Bounds that keep every buffer whose size follows from an option within reason.
constexpr int kMaxStepTokens = 1 << 16;
constexpr int kMaxQueued = 1 << 20;
constexpr int kMaxPipelineDepth = 8;

}  // namespace

absl::Status CheckSchedulerOptions(const SchedulerOptions& options) {
  RETURN_IF_ERROR(CheckRange("max_step_tokens", options.max_step_tokens, 1, kMaxStepTokens));
  RETURN_IF_ERROR(CheckRange("prefill_chunk", options.prefill_chunk, 1, kMaxStepTokens));
  RETURN_IF_ERROR(CheckRange("max_running", options.max_running, 1, options.max_step_tokens));
  RETURN_IF_ERROR(CheckRange("max_queued", options.max_queued, 1, kMaxQueued));
  RETURN_IF_ERROR(CheckRange("pipeline_depth", options.pipeline_depth, 1, kMaxPipelineDepth));
  return ExchangePolicy::Create(options.exchange, options.shape, options.max_step_tokens).status();
}

}  // namespace conclave::coordinator
