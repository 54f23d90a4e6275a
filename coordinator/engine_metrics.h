#ifndef CONCLAVE_COORDINATOR_ENGINE_METRICS_H_
#define CONCLAVE_COORDINATOR_ENGINE_METRICS_H_

// What the engine's thread observes beyond the scheduler's counters. Sequences are observed between
// the scheduler and their sinks, so that neither knows of it:
//
//   request.sink = Measured(std::move(request.sink), metrics, clock);

#include <array>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "coordinator/engine.h"
#include "coordinator/histogram.h"
#include "proto/conclave/internal/v1/worker.pb.h"

namespace conclave::coordinator {

// Where the time of a rank's step goes: computing; moving bytes in collectives; waiting for peers.
inline constexpr std::array<const char*, 3> kStages = {"compute", "exchange", "wait"};

// Totals since the coordinator started. Of the engine's thread; copies are of whoever has them.
struct EngineMetrics {
  Histogram queue;                 // until the first admission
  Histogram first_token;           // until the first token
  Histogram between_tokens;        // of one sequence
  Histogram whole;                 // until the end
  std::array<Histogram, 3> steps;  // by stage; of every rank and step
  uint64_t generated_tokens = 0;
  uint64_t classified_tokens = 0;  // prompts of sequences that a head has read or that were scored

  void ObserveStep(const internal::v1::StepResult& result);
};

// A sink that observes what passes through to `sink`. All calls to it, and this one, are on the
// engine's thread; borrows `metrics` and `clock`.
std::shared_ptr<RequestSink> Measured(std::shared_ptr<RequestSink> sink, EngineMetrics& metrics,
                                      const base::Clock& clock);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ENGINE_METRICS_H_
