#ifndef CONCLAVE_COORDINATOR_METRICS_TEXT_H_
#define CONCLAVE_COORDINATOR_METRICS_TEXT_H_

// All that /metrics shows, in Prometheus' text format (0.0.4). docs/operations.md lists it; a test
// compares the two.

#include <string>

#include "coordinator/call_account.h"
#include "coordinator/engine_loop.h"

namespace conclave::coordinator {

// What does not come from the engine's thread.
struct ProcessFacts {
  std::string model;  // name
  bool ready = false;
  int workers_wanted = 0;
  int queue_limit = 0;
  int running_limit = 0;
};

std::string MetricsText(const EngineReport& report, const CallAccount& calls,
                        const ProcessFacts& facts);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_METRICS_TEXT_H_
