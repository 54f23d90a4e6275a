#ifndef CONCLAVE_COORDINATOR_SCHEDULER_OPTIONS_H_
#define CONCLAVE_COORDINATOR_SCHEDULER_OPTIONS_H_

#include <vector>

#include "absl/status/status.h"
#include "coordinator/exchange_policy.h"
#include "model/placement.h"

namespace conclave::coordinator {

struct SchedulerOptions {
  model::ParallelShape shape;

  // Of the model.
  int context_length = 0;
  int window = 1;      // keys a sliding layer sees, the query's own included
  int vocab_size = 0;  // results outside it are refused
  std::vector<int> eos_token_ids;
  std::vector<int> head_labels;  // labels of each loaded head

  // Rows of one group in one step. Large enough that a prefill reads each weight for many tokens;
  // small enough that decoding sequences in the same step do not wait long.
  int max_step_tokens = 512;

  // Rows of one sequence's prompt in one step. Half a step, so that one long prompt leaves room for
  // a second one.
  int prefill_chunk = 256;

  // Sequences resident in one group at once. Must not pass max_step_tokens: every decoding sequence
  // gets its row in every step.
  int max_running = 64;

  // Requests that wait for admission. Beyond, Submit answers RESOURCE_EXHAUSTED: a client that
  // retries later is better off than one that waits for minutes.
  int max_queued = 1024;

  // Whole blocks of prompts and completions are kept for later sequences that begin with the same
  // tokens, as long as nobody needs the blocks.
  bool prefix_cache = true;

  // Plans sent and not yet answered. With two, a worker finds its next plan when it ends a step;
  // more would only delay new requests and cancellations.
  int pipeline_depth = 2;

  ExchangeChoice exchange = ExchangeChoice::kAuto;
};

// INVALID_ARGUMENT names the option and the number.
absl::Status CheckSchedulerOptions(const SchedulerOptions& options);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SCHEDULER_OPTIONS_H_
