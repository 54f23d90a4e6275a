#ifndef CONCLAVE_BENCH_INSTANT_RUNTIME_H_
#define CONCLAVE_BENCH_INSTANT_RUNTIME_H_

// A worker's model that computes nothing and answers at once: what is left is the cost of planning
// a step, sending it and taking its result.

#include <vector>

#include "absl/synchronization/mutex.h"
#include "worker/rank_runtime.h"

namespace conclave::bench {

class InstantRuntime final : public worker::RankRuntime {
 public:
  absl::StatusOr<internal::v1::Ready> Begin(worker::Generation, const internal::v1::Assignment&,
                                            worker::Rendezvous&, const Progress&) override;
  // Samples the same token for every chunk that wants one.
  absl::StatusOr<internal::v1::StepResult> Step(const internal::v1::StepPlan& plan) override;
  internal::v1::RankStats Stats() override { return {}; }
  void End(bool) override {}
  void Abort(worker::Generation) override {}

  // Any thread: times (WallSeconds) at which the plans with `sequences` sampled tokens came, since
  // the last call.
  std::vector<double> TakeTimes(int sequences);

 private:
  struct Arrival {
    double time = 0;
    int sampled = 0;
  };
  absl::Mutex mutex_;  // guards arrivals_
  std::vector<Arrival> arrivals_;
};

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_INSTANT_RUNTIME_H_
