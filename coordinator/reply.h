#ifndef CONCLAVE_COORDINATOR_REPLY_H_
#define CONCLAVE_COORDINATOR_REPLY_H_

// From token events to what the client sees: ids, whole characters of text, log-probabilities,
// finish. One builder per sequence; not thread-safe.

#include <memory>
#include <optional>
#include <span>

#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "coordinator/translate.h"
#include "model/tokenizer.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

v1::Usage ToProto(const Outcome& outcome);

class ReplyBuilder {
 public:
  // Keeps the stop conditions and the seed of `request`. `model` outlives the builder.
  ReplyBuilder(const ServingModel& model, const Request& request);

  // `Reply` is GenerateResponse or GenerateBatchResult.
  template <typename Reply>
  void Append(std::span<const TokenEvent> events, Reply* reply) {
    for (const TokenEvent& event : events) {
      reply->add_tokens(static_cast<uint32_t>(event.token));
      reply->mutable_text()->append(TextOf(event.token));
      if (stops_.sampling.logprobs() >= 0) FillLogprobs(event, reply->add_logprobs());
    }
  }

  // The text left over and the finish. Only for an outcome whose status is OK.
  template <typename Reply>
  void Finish(const Outcome& outcome, Reply* reply) {
    if (detokenizer_.has_value()) reply->mutable_text()->append(detokenizer_->Finish());
    FillFinish(outcome, reply->mutable_finish());
  }

 private:
  std::string TextOf(int token);
  void FillLogprobs(const TokenEvent& event, v1::TokenLogprobs* out) const;
  void FillFinish(const Outcome& outcome, v1::Finish* out) const;

  const ServingModel& model_;
  Request stops_;  // stop conditions and sampling alone
  std::optional<model::IncrementalDetokenizer> detokenizer_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REPLY_H_
