#ifndef CONCLAVE_COORDINATOR_REPLY_H_
#define CONCLAVE_COORDINATOR_REPLY_H_

// From token events to what the client sees: ids, whole characters of text, log-probabilities,
// finish. One builder per sequence; not thread-safe.

#include <memory>
#include <optional>
#include <span>

#include "coordinator/engine.h"
#include "coordinator/serving_model.h"
#include "model/tokenizer.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

v1::Usage ToProto(const Outcome& outcome);

class ReplyBuilder {
 public:
  // The tokenizer of `model` outlives the builder.
  ReplyBuilder(const ServingModel& model, const Request& request);

  // `Reply` is GenerateResponse or GenerateBatchResult.
  template <typename Reply>
  void Append(std::span<const TokenEvent> events, Reply* reply) {
    for (const TokenEvent& event : events) {
      reply->add_tokens(static_cast<uint32_t>(event.token));
      if (detokenizer_.has_value() && !event.is_stop) {
        reply->mutable_text()->append(detokenizer_->Append(event.token));
      }
      if (logprobs_) FillLogprobs(event, reply->add_logprobs());
    }
  }

  // The text left over and the finish. Only for an outcome whose status is OK.
  template <typename Reply>
  void Finish(const Outcome& outcome, Reply* reply) {
    if (detokenizer_.has_value()) reply->mutable_text()->append(detokenizer_->Finish());
    FillFinish(outcome, reply->mutable_finish());
  }

 private:
  static void FillLogprobs(const TokenEvent& event, v1::TokenLogprobs* out);
  void FillFinish(const Outcome& outcome, v1::Finish* out) const;

  bool logprobs_;
  uint64_t seed_;
  std::optional<model::IncrementalDetokenizer> detokenizer_;
};

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_REPLY_H_
