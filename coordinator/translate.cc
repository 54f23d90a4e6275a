#include "coordinator/translate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <utility>

#include "base/status_macros.h"
#include "coordinator/conversation.h"

namespace conclave::coordinator {
namespace {

constexpr float kMaxTemperature = 100.0F;
constexpr int kMaxPriority = 100;
constexpr size_t kMaxUserBytes = 128;
constexpr float kMinRepetitionPenalty = 0.01F;
constexpr float kMaxRepetitionPenalty = 100.0F;
constexpr float kMaxPenalty = 2.0F;
constexpr float kMaxBias = 100.0F;
constexpr int kMaxBiases = 1024;     // a slot's list on a worker
constexpr int kMaxStopTokens = 128;  // each is compared with every token of the sequence
constexpr int kMaxStopStrings = 64;  // each is compared with every byte of the text
constexpr size_t kMaxStopStringBytes = 256;

template <typename... Args>
absl::Status Invalid(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

absl::StatusOr<std::vector<int32_t>> CheckIds(const ServingModel& model, const v1::TokenIds& ids,
                                              const std::string& field) {
  std::vector<int32_t> tokens(ids.ids().begin(), ids.ids().end());
  for (int i = 0; i < ids.ids_size(); ++i) {
    if (ids.ids(i) >= static_cast<uint32_t>(model.config.vocab_size)) {
      return Invalid("{}.tokens.ids[{}] is {}: token ids are in [0, {})", field, i, ids.ids(i),
                     model.config.vocab_size);
    }
  }
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> EncodeText(const ServingModel& model, const std::string& text,
                                                const std::string& field, int max_tokens) {
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(fmt::format(
        "{}.text: the model folder has no tokenizer.json; send token ids, or start the server with "
        "--tokenizer FILE",
        field));
  }
  // Megabytes that cannot fit are not worth the time to count their tokens.
  const size_t longest = model.tokenizer->longest_token();
  if (text.size() > longest * static_cast<size_t>(max_tokens)) {
    return Invalid("{}.text has {} bytes: more than {} tokens, the most {}", field, text.size(),
                   max_tokens, model.prompt_bound());
  }
  return model.tokenizer->Encode(text);
}

// Range check that also catches NaN.
absl::Status CheckRange(const std::string& field, float value, float low, float high,
                        const char* range) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid("{} is {}: it is in {}", field, value, range);
}

absl::Status TranslatePenalties(const v1::SamplingParams& params, const std::string& prefix,
                                internal::v1::Sampling& out) {
  const float repetition = params.has_repetition_penalty() ? params.repetition_penalty() : 1.0F;
  RETURN_IF_ERROR(CheckRange(prefix + "sampling.repetition_penalty", repetition,
                             kMinRepetitionPenalty, kMaxRepetitionPenalty, "[0.01, 100]"));
  RETURN_IF_ERROR(CheckRange(prefix + "sampling.presence_penalty", params.presence_penalty(),
                             -kMaxPenalty, kMaxPenalty, "[-2, 2]"));
  RETURN_IF_ERROR(CheckRange(prefix + "sampling.frequency_penalty", params.frequency_penalty(),
                             -kMaxPenalty, kMaxPenalty, "[-2, 2]"));
  out.set_repetition_penalty(repetition);
  out.set_presence_penalty(params.presence_penalty());
  out.set_frequency_penalty(params.frequency_penalty());
  return absl::OkStatus();
}

absl::Status TranslateBias(const v1::SamplingParams& params, const std::string& prefix,
                           int vocab_size, internal::v1::Sampling& out) {
  if (params.logit_bias_size() > kMaxBiases) {
    return Invalid("{}sampling.logit_bias has {} entries: at most {}", prefix,
                   params.logit_bias_size(), kMaxBiases);
  }
  for (const auto& [token, bias] : params.logit_bias()) {
    if (token >= static_cast<uint32_t>(vocab_size)) {
      return Invalid("{}sampling.logit_bias has an entry for token {}: token ids are in [0, {})",
                     prefix, token, vocab_size);
    }
    RETURN_IF_ERROR(CheckRange(fmt::format("{}sampling.logit_bias[{}]", prefix, token), bias,
                               -kMaxBias, kMaxBias, "[-100, 100]"));
    if (bias == 0.0F) continue;
    out.add_bias_tokens(token);
    out.add_biases(bias);
  }
  return absl::OkStatus();
}

absl::Status TranslateSampling(const v1::SamplingParams& params, const std::string& prefix,
                               int vocab_size, internal::v1::Sampling& out) {
  const float temperature = params.has_temperature() ? params.temperature() : 1.0F;
  const float top_p = params.has_top_p() ? params.top_p() : 1.0F;
  RETURN_IF_ERROR(
      CheckRange(prefix + "sampling.temperature", temperature, 0.0F, kMaxTemperature, "[0, 100]"));
  if (top_p == 0.0F) return Invalid("{}sampling.top_p is 0: it is in (0, 1]", prefix);
  RETURN_IF_ERROR(CheckRange(prefix + "sampling.top_p", top_p, 0.0F, 1.0F, "(0, 1]"));
  RETURN_IF_ERROR(CheckRange(prefix + "sampling.min_p", params.min_p(), 0.0F, 1.0F, "[0, 1]"));
  RETURN_IF_ERROR(TranslatePenalties(params, prefix, out));
  RETURN_IF_ERROR(TranslateBias(params, prefix, vocab_size, out));
  out.set_temperature(temperature);
  out.set_top_p(top_p);
  out.set_min_p(params.min_p());
  out.set_top_k(std::min(params.top_k(), static_cast<uint32_t>(vocab_size)));
  out.set_seed(params.has_seed() ? params.seed() : std::random_device()());
  return absl::OkStatus();
}

// Entries of a top list, or -1 when `wanted` is not.
absl::StatusOr<int> TranslateLogprobs(bool wanted, uint32_t top, const std::string& field) {
  if (!wanted) return -1;
  if (top > kMaxLogprobs) return Invalid("{} is {}: at most {}", field, top, kMaxLogprobs);
  return static_cast<int>(top);
}

absl::Status TranslateStopStrings(const ServingModel& model, const v1::StopParams& stop,
                                  const std::string& prefix, Request& out) {
  if (stop.stop_strings().empty()) return absl::OkStatus();
  if (stop.stop_strings_size() > kMaxStopStrings) {
    return Invalid("{}stop.stop_strings has {} strings: at most {}", prefix,
                   stop.stop_strings_size(), kMaxStopStrings);
  }
  for (int i = 0; i < stop.stop_strings_size(); ++i) {
    const size_t bytes = stop.stop_strings(i).size();
    if (bytes == 0 || bytes > kMaxStopStringBytes) {
      return Invalid("{}stop.stop_strings[{}] has {} bytes: 1 to {}", prefix, i, bytes,
                     kMaxStopStringBytes);
    }
  }
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(fmt::format(
        "{}stop.stop_strings: the server has no tokenizer to tell text by; use stop_token_ids",
        prefix));
  }
  out.stop_strings = std::make_shared<const StopStrings>(
      model.tokenizer,
      std::vector<std::string>(stop.stop_strings().begin(), stop.stop_strings().end()));
  return absl::OkStatus();
}

// What is not drawn before min_tokens are there: all that would end the sequence.
absl::Status TranslateMinTokens(const ServingModel& model, const v1::StopParams& stop,
                                const std::string& prefix, Request& out) {
  if (stop.min_tokens() > stop.max_tokens()) {
    return Invalid("{}stop.min_tokens is {}: at most max_tokens, {}", prefix, stop.min_tokens(),
                   stop.max_tokens());
  }
  out.min_tokens = static_cast<int>(
      std::min(stop.min_tokens(), static_cast<uint32_t>(model.config.context_length)));
  if (out.min_tokens == 0) return absl::OkStatus();
  std::set<int> ends(out.stop_token_ids.begin(), out.stop_token_ids.end());
  if (!out.ignore_eos) {
    ends.insert(model.config.eos_token_ids.begin(), model.config.eos_token_ids.end());
  }
  out.sampling.mutable_end_tokens()->Add(ends.begin(), ends.end());
  out.sampling.set_first_end_position(static_cast<uint32_t>(out.tokens.size()) + out.min_tokens);
  return absl::OkStatus();
}

void TranslateEcho(const ServingModel& model, const v1::GenerateRequest& request, Request& out) {
  if (!request.echo()) return;
  out.echo = true;
  if (request.prompt().has_text()) {
    out.prompt_text = request.prompt().text();
  } else if (model.tokenizer != nullptr) {
    out.prompt_text = model.tokenizer->Decode(out.tokens);
  }
}

absl::Status TranslateStop(const ServingModel& model, const v1::StopParams& stop,
                           const std::string& prefix, Request& out) {
  if (stop.max_tokens() == 0) return Invalid("{}stop.max_tokens is 0: at least 1", prefix);
  // The engine ends at the context length anyway; this keeps the number in range.
  out.max_tokens = static_cast<int>(
      std::min(stop.max_tokens(), static_cast<uint32_t>(model.config.context_length)));
  out.ignore_eos = stop.ignore_eos();
  if (stop.stop_token_ids_size() > kMaxStopTokens) {
    return Invalid("{}stop.stop_token_ids has {} ids: at most {}", prefix,
                   stop.stop_token_ids_size(), kMaxStopTokens);
  }
  for (int i = 0; i < stop.stop_token_ids_size(); ++i) {
    const uint32_t id = stop.stop_token_ids(i);
    if (id >= static_cast<uint32_t>(model.config.vocab_size)) {
      return Invalid("{}stop.stop_token_ids[{}] is {}: token ids are in [0, {})", prefix, i, id,
                     model.config.vocab_size);
    }
    out.stop_token_ids.push_back(static_cast<int>(id));
  }
  RETURN_IF_ERROR(TranslateStopStrings(model, stop, prefix, out));
  return TranslateMinTokens(model, stop, prefix, out);
}

absl::Status TranslateForcedRouting(const ServingModel& model, const v1::ForcedRouting& forced,
                                    const std::string& prefix, Request& out) {
  if (!model.allow_forced_routing) {
    return absl::FailedPreconditionError(
        fmt::format("{}forced_routing needs a server started with --allow-forced-routing", prefix));
  }
  const model::Config& config = model.config;
  const int per_position = config.num_layers * config.experts_per_token;
  if (forced.expert_ids_size() % per_position != 0) {
    return Invalid("{}forced_routing.expert_ids has {} entries: a multiple of {} layers x {}",
                   prefix, forced.expert_ids_size(), config.num_layers, config.experts_per_token);
  }
  for (int i = 0; i < forced.expert_ids_size(); ++i) {
    if (forced.expert_ids(i) >= static_cast<uint32_t>(config.num_experts)) {
      return Invalid("{}forced_routing.expert_ids[{}] is {}: expert ids are in [0, {})", prefix, i,
                     forced.expert_ids(i), config.num_experts);
    }
  }
  for (int i = 0; i < forced.expert_ids_size(); i += config.experts_per_token) {
    std::vector<uint32_t> ids(forced.expert_ids().begin() + i,
                              forced.expert_ids().begin() + i + config.experts_per_token);
    std::sort(ids.begin(), ids.end());
    if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) {
      return Invalid("{}forced_routing.expert_ids[{}]: an expert is chosen twice", prefix, i);
    }
  }
  out.forced_expert_ids.assign(forced.expert_ids().begin(), forced.expert_ids().end());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> TranslatePrompt(const ServingModel& model,
                                                     const v1::Prompt& prompt,
                                                     const std::string& field, int max_tokens) {
  absl::StatusOr<std::vector<int32_t>> tokens;
  switch (prompt.kind_case()) {
    case v1::Prompt::kText:
      tokens = EncodeText(model, prompt.text(), field, max_tokens);
      break;
    case v1::Prompt::kTokens:
      tokens = CheckIds(model, prompt.tokens(), field);
      break;
    case v1::Prompt::kConversation:
      tokens = RenderConversation(model, prompt.conversation(), field + ".conversation", max_tokens,
                                  /*reply_channel=*/"");
      break;
    case v1::Prompt::KIND_NOT_SET:
      return Invalid("{} is empty: set text, tokens or conversation", field);
  }
  RETURN_IF_ERROR(tokens.status());
  if (tokens->empty()) return Invalid("{} is empty: at least one token", field);
  if (tokens->size() > static_cast<size_t>(max_tokens)) {
    return Invalid("{} has {} tokens: at most {} {}", field, tokens->size(), max_tokens,
                   model.prompt_bound());
  }
  return tokens;
}

absl::Status TranslateClaim(int priority, const std::string& user, const std::string& prefix,
                            const std::string& peer, Request& out) {
  if (priority < -kMaxPriority || priority > kMaxPriority) {
    return Invalid("{}priority is {}: it is in [{}, {}]", prefix, priority, -kMaxPriority,
                   kMaxPriority);
  }
  if (user.size() > kMaxUserBytes) {
    return Invalid("{}user has {} bytes: at most {}", prefix, user.size(), kMaxUserBytes);
  }
  out.priority = priority;
  // Without the port: connections of one host are one client.
  out.user = user.empty() ? "peer " + peer.substr(0, peer.rfind(':')) : "user " + user;
  return absl::OkStatus();
}

absl::StatusOr<Request> TranslateGenerate(const ServingModel& model,
                                          const v1::GenerateRequest& request,
                                          const std::string& prefix) {
  if (!model.can_generate()) {
    return absl::FailedPreconditionError(
        "this checkpoint has no language-model head: it classifies but cannot generate");
  }
  Request out;
  // A prompt that fills the context leaves no room for a token.
  ASSIGN_OR_RETURN(out.tokens, TranslatePrompt(model, request.prompt(), prefix + "prompt",
                                               model.longest_prompt(/*room=*/1)));
  RETURN_IF_ERROR(
      TranslateSampling(request.sampling(), prefix, model.config.vocab_size, out.sampling));
  out.sampling.set_prompt_tokens(static_cast<uint32_t>(out.tokens.size()));
  ASSIGN_OR_RETURN(const int logprobs, TranslateLogprobs(request.has_logprobs(), request.logprobs(),
                                                         prefix + "logprobs"));
  out.sampling.set_logprobs(logprobs);
  ASSIGN_OR_RETURN(out.prompt_logprobs,
                   TranslateLogprobs(request.has_prompt_logprobs(), request.prompt_logprobs(),
                                     prefix + "prompt_logprobs"));
  TranslateEcho(model, request, out);
  RETURN_IF_ERROR(TranslateStop(model, request.stop(), prefix, out));
  if (request.has_forced_routing()) {
    RETURN_IF_ERROR(TranslateForcedRouting(model, request.forced_routing(), prefix, out));
  }
  return out;
}

absl::StatusOr<std::vector<Request>> TranslateCompletions(const ServingModel& model,
                                                          const v1::GenerateRequest& request,
                                                          const std::string& prefix,
                                                          const std::string& peer) {
  ASSIGN_OR_RETURN(Request out, TranslateGenerate(model, request, prefix));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), prefix, peer, out));
  if (request.n() > kMaxCompletions) {
    return Invalid("{}n is {}: at most {}", prefix, request.n(), kMaxCompletions);
  }
  std::vector<Request> completions(std::max<uint32_t>(1, request.n()), out);
  for (size_t i = 0; i < completions.size(); ++i) {
    completions[i].sampling.set_seed(out.sampling.seed() + i);
    if (i == 0) continue;
    // The prompt is told once.
    completions[i].echo = false;
    completions[i].prompt_logprobs = -1;
    completions[i].prompt_text.clear();
  }
  return completions;
}

absl::StatusOr<Request> TranslateChat(const ServingModel& model, const v1::ChatRequest& request,
                                      const std::string& peer) {
  if (!model.can_generate()) {
    return absl::FailedPreconditionError(
        "this checkpoint has no language-model head: it classifies but cannot chat");
  }
  const int longest = model.longest_prompt(/*room=*/1);
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                   RenderConversation(model, request.conversation(), "conversation", longest,
                                      /*reply_channel=*/""));
  if (tokens.size() > static_cast<size_t>(longest)) {
    return Invalid("conversation has {} tokens as it is rendered: at most {} {}", tokens.size(),
                   longest, model.prompt_bound());
  }
  v1::GenerateRequest generate;
  generate.mutable_prompt()->mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
  *generate.mutable_sampling() = request.sampling();
  *generate.mutable_stop() = request.stop();
  generate.mutable_stop()->add_stop_token_ids(model.harmony->ret);
  generate.mutable_stop()->add_stop_token_ids(model.harmony->call);
  ASSIGN_OR_RETURN(Request out, TranslateGenerate(model, generate, ""));
  RETURN_IF_ERROR(TranslateClaim(request.priority(), request.user(), "", peer, out));
  return out;
}

absl::Status CheckCallTokens(const ServingModel& model, const std::string& field, int64_t tokens) {
  if (tokens <= model.limits.max_call_tokens) return absl::OkStatus();
  return Invalid("{} have prompts of more than {} tokens together, the most of one call", field,
                 model.limits.max_call_tokens);
}

absl::Status CheckBatchSize(const std::string& field, int size) {
  if (size == 0) return Invalid("{} is empty: at least one", field);
  if (size > kMaxBatch) return Invalid("{} has {} entries: at most {}", field, size, kMaxBatch);
  return absl::OkStatus();
}

}  // namespace conclave::coordinator
