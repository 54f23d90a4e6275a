#ifndef CONCLAVE_COORDINATOR_ENGINE_H_
#define CONCLAVE_COORDINATOR_ENGINE_H_

// What the public services ask of the engine, in domain types. The services validate, translate and
// stream; the engine schedules and owns all state.
//
//   auto sink = std::make_shared<MySink>();
//   ASSIGN_OR_RETURN(RequestId id, engine.Submit({.tokens = ids, .max_tokens = 16, .sink = sink}));
//   ... sink->OnTokens(...) zero or more times, then sink->OnEnd(...) exactly once ...

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/call_account.h"
#include "coordinator/stop_strings.h"
#include "model/config.h"
#include "proto/conclave/internal/v1/worker.pb.h"
#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::coordinator {

class ApiKeyAccount;

using RequestId = uint64_t;

// One generated token.
struct TokenEvent {
  int token = 0;
  bool is_stop = false;                    // ends the sequence: its text is not part of the reply
  float logprob = 0;                       // if the request asked for log-probabilities
  std::vector<std::pair<int, float>> top;  // by falling logprob
  // Bytes at the end of the text so far that are not to be shown: they are a stop string and what
  // follows it (`stop_string`), or may be the beginning of one (shown when a later event, or an
  // end without one, says so).
  int held_bytes = 0;
  bool stop_string = false;
};

// A token of the prompt and how likely the model had it, given those before it.
struct PromptLogprob {
  int token = 0;
  float logprob = 0;
  std::vector<std::pair<int, float>> top;  // by falling logprob
};

enum class FinishReason { kStop, kLength, kCancelled, kHeads };

// How a request ended. `status` is OK exactly when `reason` counts.
struct Outcome {
  absl::Status status;
  FinishReason reason = FinishReason::kStop;
  // With kStop of a generation: the string that ended it, or else (empty) the token.
  std::string stop_string = {};
  int stop_token = 0;
  int prompt_tokens = 0;
  int completion_tokens = 0;
  int cached_tokens = 0;  // of the prompt, found in the prefix cache
  absl::Duration queue_time;
  absl::Duration first_token_time;
  absl::Duration total_time;
};

// Where results of one request go. Called from the scheduler thread, one call at a time; must not
// block and must not call the engine.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnTokens(std::span<const TokenEvent> tokens) = 0;
  // Of the prompt's second token (or first_prompt_logprob) and on, in order, before the first
  // OnTokens. Only if the request asked for them.
  virtual void OnPromptLogprobs(std::span<const PromptLogprob>) {}
  // logits [rows, labels] of head `head` at positions [first_position, first_position + rows).
  virtual void OnHeadLogits(int head, int first_position, std::span<const float> logits) = 0;
  // Exactly once, and nothing after it.
  virtual void OnEnd(const Outcome& outcome) = 0;
};

// Rows of the prompt at which a head is read: [first, first + count).
struct HeadRead {
  int head = 0;
  int first = 0;
  int count = 0;
};

// Checked by the services: ids in range, 1 <= tokens < context (generation) or <= context (heads).
struct Request {
  std::vector<int32_t> tokens;
  int max_tokens = 0;  // 0 with heads or prompt_logprobs: the request ends after prefill
  internal::v1::Sampling sampling;
  bool ignore_eos = false;
  std::vector<int> stop_token_ids;
  // Of the first min_tokens tokens none ends the sequence: `sampling` keeps end tokens from being
  // drawn, and stop strings that they complete count for nothing.
  int min_tokens = 0;
  std::shared_ptr<const StopStrings> stop_strings;  // null: none
  int prompt_logprobs = -1;  // entries of the top list of each of the prompt's tokens; -1: none
  // The first of the prompt's tokens that is asked for; the first of all has none.
  int first_prompt_logprob = 1;
  bool echo = false;  // the reply begins with the prompt: `tokens` and this text
  std::string prompt_text = {};
  std::vector<HeadRead> heads;
  std::vector<uint32_t> forced_expert_ids;  // [positions, layers, k]
  int priority = 0;                         // the higher is admitted first
  std::string user;                         // whose share of the service this is
  std::shared_ptr<ApiKeyAccount> account;   // of the caller's key; null: none (limited_engine.h)
  absl::Time deadline = absl::InfiniteFuture();
  bool of_open_call = false;  // of a call that is under way: taken while the engine drains, too
  std::shared_ptr<RequestSink> sink;
};

// A head that is loaded.
struct Head {
  std::string name;
  std::string dir;  // empty: the checkpoint's own
  model::HeadConfig config;
  bool backbone_verified = false;
};

// Thread-safe.
class Engine {
 public:
  virtual ~Engine() = default;

  // Takes the request or refuses it at once: RESOURCE_EXHAUSTED when the queue is full (with a
  // retry delay, base/retry_delay.h), or when the request could never fit the KV cache (with the
  // numbers); UNAVAILABLE while the group is not READY, or the engine drains. After an error the
  // sink is never called.
  absl::StatusOr<RequestId> Submit(Request request) {
    std::vector<Request> one;
    one.push_back(std::move(request));
    absl::StatusOr<std::vector<RequestId>> ids = SubmitForks(one);
    if (!ids.ok()) return std::move(ids).status();
    return ids->front();
  }

  // Takes all, or none and leaves `requests` as they are. The first one's prompt is computed before
  // the others begin: they share its KV blocks as far as their tokens are the same (several
  // completions of one prompt).
  virtual absl::StatusOr<std::vector<RequestId>> SubmitForks(std::vector<Request>& requests) = 0;

  // The request ends with kCancelled unless it has ended already. Unknown ids are ignored.
  virtual void Cancel(RequestId id) = 0;

  // Moves experts, as ClusterService.Rebalance says. `done` is called once, by any thread; it must
  // not block and must not call the engine.
  using RebalanceDone = std::function<void(absl::StatusOr<v1::RebalanceResponse>)>;
  virtual void Rebalance(const v1::RebalanceRequest& request, RebalanceDone done) = 0;

  // Stops taking work or takes it again, as ClusterService.Drain says. `done` as above.
  using DrainDone = std::function<void(absl::StatusOr<v1::DrainResponse>)>;
  virtual void Drain(const v1::DrainRequest& request, DrainDone done) = 0;

  // State, ranks and counters, as ClusterService reports them.
  virtual v1::GetClusterResponse Snapshot() = 0;

  // SERVING for grpc.health.v1: READY, not draining, and either nothing is queued or results keep
  // coming.
  virtual bool Serving() = 0;

  // Where the services count their calls. A drain waits for those it has admitted.
  virtual CallAccount& calls() = 0;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_ENGINE_H_
