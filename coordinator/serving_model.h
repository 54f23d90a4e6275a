#ifndef CONCLAVE_COORDINATOR_SERVING_MODEL_H_
#define CONCLAVE_COORDINATOR_SERVING_MODEL_H_

// What is served, as the public services see it: configuration, tokenizer, heads, limits. Made once
// at start-up, immutable, shared by all services.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/engine.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/harmony.h"
#include "model/model_source.h"
#include "model/tokenizer.h"

namespace conclave::coordinator {

// Entries of a list of most likely tokens (GenerateRequest.logprobs), as wide as the sampler's
// rows.
inline constexpr uint32_t kMaxLogprobs = 20;

// Completions of one prompt (GenerateRequest.n): more are no longer a choice but a batch.
inline constexpr int kMaxCompletions = 32;

// Entries of one batch call: each holds memory until the call ends.
inline constexpr int kMaxBatch = 16384;

struct ServingLimits {
  int max_running = 0;
  int max_queued = 0;
  int max_step_tokens = 0;
  int max_message_bytes = 64 << 20;
  int max_prompt_tokens = 0;        // of one request; 0: what the context holds
  int max_unread_bytes = 16 << 20;  // events that may wait for the reader of one stream
  int max_unread_seconds = 60;      // that a message may wait for its reader; 0: no limit
  int max_reply_bytes = 256 << 20;  // of a unary call: its results, and the message made of them
  // Of the prompts of one call, each as often as it has completions or labels: 256 MiB. What has
  // one of each cannot reach it in a message of the usual limit.
  int64_t max_call_tokens = 64 << 20;
};

struct ServingModel {
  std::string name;  // last component of the folder
  std::string dir;
  std::optional<model::RandomWeights> random_weights;
  model::Config config;
  // Null when the folder has none: then only token inputs are served.
  std::shared_ptr<const model::Tokenizer> tokenizer;
  // Set when the tokenizer has Harmony's special tokens: then conversations are served.
  std::optional<model::HarmonyTokens> harmony;
  std::shared_ptr<const model::Checkpoint> checkpoint;  // headers only
  std::vector<Head> heads;
  ServingLimits limits;
  bool allow_forced_routing = false;

  // Tokens of a prompt at most that leaves room for so many in the context.
  int longest_prompt(int room) const {
    const int fits = config.context_length - room;
    return limits.max_prompt_tokens > 0 ? std::min(fits, limits.max_prompt_tokens) : fits;
  }
  // What sets that bound, for messages: "with a context of 4096".
  std::string prompt_bound() const;
  bool can_generate() const { return config.architecture == model::Architecture::kCausalLm; }
  bool can_chat() const { return can_generate() && harmony.has_value(); }
};

struct ServingModelOptions {
  std::string dir;
  // Instead of weights from `dir`.
  std::optional<model::RandomWeights> random_weights;
  std::string tokenizer;                                   // file; empty: `dir`/tokenizer.json
  std::vector<std::pair<std::string, std::string>> heads;  // name, folder
  ServingLimits limits;
  bool allow_forced_routing = false;
};

// Reads config, headers, tokenizer and heads; refuses what cannot be served, with file and field.
absl::StatusOr<ServingModel> LoadServingModel(const ServingModelOptions& options);

// Index in `model.heads` of the head a request names (may be empty when there is just one of
// `kind`). INVALID_ARGUMENT listing the heads when the name is unknown or of the other kind;
// FAILED_PRECONDITION when no head is loaded, or none of `kind` and no name is given.
absl::StatusOr<int> FindHead(const ServingModel& model, model::Architecture kind,
                             const std::string& name);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_SERVING_MODEL_H_
