#ifndef CONCLAVE_COORDINATOR_REPLY_H_
#define CONCLAVE_COORDINATOR_REPLY_H_

// From token events to what the client sees: ids, whole characters of text, log-probabilities,
// finish. One builder per sequence; not thread-safe.

#include <memory>
#include <optional>
#include <span>

#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "coordinator/shown_text.h"
#include "model/tokenizer.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

v1::Usage ToProto(const Outcome& outcome);
v1::Timings TimingsOf(const Outcome& outcome);

class ReplyBuilder {
 public:
  // The tokenizer of `model` outlives the builder.
  ReplyBuilder(const ServingModel& model, const Request& request);

  // `Reply` is GenerateResponse or GenerateBatchResult.
  template <typename Reply>
  void Append(std::span<const TokenEvent> events, Reply* reply) {
    AppendEcho(reply);
    for (const TokenEvent& event : events) {
      reply->add_tokens(static_cast<uint32_t>(event.token));
      if (text_.has_value()) reply->mutable_text()->append(text_->Append(event));
      if (logprobs_) FillLogprobs(event, reply->add_logprobs());
    }
  }

  // Before the first token.
  template <typename Reply>
  void AppendPrompt(std::span<const PromptLogprob> events, Reply* reply) {
    AppendEcho(reply);
    for (const PromptLogprob& event : events) {
      FillLogprobs(event, reply->mutable_prompt()->add_logprobs());
    }
  }

  // The text left over and the finish. Only for an outcome whose status is OK.
  template <typename Reply>
  void Finish(const Outcome& outcome, Reply* reply) {
    AppendEcho(reply);
    if (text_.has_value()) reply->mutable_text()->append(text_->Finish());
    FillFinish(outcome, reply->mutable_finish());
  }

 private:
  // The prompt, once.
  template <typename Reply>
  void AppendEcho(Reply* reply) {
    if (!echo_.has_value()) return;
    *reply->mutable_prompt() = *std::move(echo_);
    echo_.reset();
  }
  template <typename Event>  // TokenEvent or PromptLogprob
  static void FillLogprobs(const Event& event, v1::TokenLogprobs* out);
  void FillFinish(const Outcome& outcome, v1::Finish* out) const;

  bool logprobs_;
  uint64_t seed_;
  std::optional<ShownText> text_;
  std::optional<v1::PromptEcho> echo_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REPLY_H_
