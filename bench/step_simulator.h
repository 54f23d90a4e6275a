#ifndef CONCLAVE_BENCH_STEP_SIMULATOR_H_
#define CONCLAVE_BENCH_STEP_SIMULATOR_H_

// Replays routing over a placement: how long each rank of a world computes and exchanges in a step,
// who waits for whom, and how many bytes travel.
//
//   Simulator simulator(config, placement, shape, H100Device(), NvLink());
//   const StepPrediction step = simulator.Run(trace, 0, {.rows = {32, 32}, .keys = 1024});
//
// Ranks run at their own pace between collectives and leave each together.

#include <cstdint>
#include <vector>

#include "bench/cost_model.h"
#include "bench/routing_trace.h"
#include "coordinator/exchange_policy.h"
#include "model/config.h"
#include "model/placement.h"

namespace conclave::bench {

struct SimulatedStep {
  std::vector<int> rows;  // [dp]: tokens of each group
  int keys = 1;           // that a row attends to in a full layer
  bool prefill = false;   // the rows of a group are one chunk: none is sampled, keys are read once
};

struct StepPrediction {
  internal::v1::ExchangeMode mode = internal::v1::EXCHANGE_MODE_UNSPECIFIED;
  double seconds = 0;
  // Sums over the layers, on the busiest rank of each.
  double attention_seconds = 0;  // all ops of a layer but the experts
  double expert_seconds = 0;
  double exchange_seconds = 0;      // from the last rank's arrival at a collective until its end
  double other_seconds = 0;         // output, sampling, step
  std::vector<double> busy;         // [world] seconds of own work
  std::vector<int64_t> sent_bytes;  // [world]
  std::vector<int64_t> copies;      // [world] dispatched to other ranks
  std::vector<int64_t> pairs;       // [world] token-expert pairs computed
  // Mean over the layers of: pairs of the busiest rank / mean of all; experts' time likewise.
  double pair_imbalance = 1;
  double time_imbalance = 1;
};

class Simulator {
 public:
  // Borrows `config` and `placement`, which has one layer for each of the config's.
  Simulator(const model::Config& config, const model::Placement& placement,
            const model::ParallelShape& shape, DeviceProfile device, LinkProfile link,
            coordinator::ExchangeChoice choice = coordinator::ExchangeChoice::kAuto);

  // The step's rows are the trace's tokens from `first` on, around its end to its begin.
  // The trace has the config's sizes and at least one token.
  StepPrediction Run(const RoutingTrace& trace, int first, const SimulatedStep& step) const;

 private:
  const model::Config& config_;
  const model::Placement& placement_;
  const model::ParallelShape shape_;
  const DeviceProfile device_;
  const LinkProfile link_;
  const coordinator::ExchangeChoice choice_;
};

}  // namespace conclave::bench

#endif  // CONCLAVE_BENCH_STEP_SIMULATOR_H_
