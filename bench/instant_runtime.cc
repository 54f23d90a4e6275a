#include "bench/instant_runtime.h"

#include <algorithm>

#include "bench/measure.h"

namespace conclave::bench {
namespace {

constexpr uint32_t kToken = 1;

}  // namespace

absl::StatusOr<internal::v1::Ready> InstantRuntime::Begin(worker::Generation,
                                                          const internal::v1::Assignment&,
                                                          worker::Rendezvous&, const Progress&) {
  internal::v1::Ready ready;
  ready.set_resident_format("mxfp4");
  return ready;
}

absl::StatusOr<internal::v1::StepResult> InstantRuntime::Step(const internal::v1::StepPlan& plan) {
  const double now = WallSeconds();
  internal::v1::StepResult result;
  for (const internal::v1::Chunk& chunk : plan.chunks()) {
    if (!chunk.sample()) continue;
    internal::v1::Sampled& sampled = *result.add_sampled();
    sampled.set_slot(chunk.slot());
    sampled.set_position(chunk.start_position() +
                         static_cast<uint32_t>(std::max(1, chunk.tokens_size())));
    sampled.set_token(kToken);
  }
  absl::MutexLock lock(&mutex_);
  arrivals_.push_back({now, result.sampled_size()});
  return result;
}

std::vector<double> InstantRuntime::TakeTimes(int sequences) {
  absl::MutexLock lock(&mutex_);
  std::vector<double> times;
  for (const Arrival& arrival : arrivals_) {
    if (arrival.sampled == sequences) times.push_back(arrival.time);
  }
  arrivals_.clear();
  return times;
}

}  // namespace conclave::bench
