#include "coordinator/reply.h"

namespace conclave::coordinator {
namespace {

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kHeads:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

v1::Usage ToProto(const Outcome& outcome) {
  v1::Usage usage;
  usage.set_prompt_tokens(static_cast<uint32_t>(outcome.prompt_tokens));
  usage.set_completion_tokens(static_cast<uint32_t>(outcome.completion_tokens));
  return usage;
}

ReplyBuilder::ReplyBuilder(const ServingModel& model, const Request& request)
    : logprobs_(request.sampling.logprobs() >= 0), seed_(request.sampling.seed()) {
  if (model.tokenizer != nullptr) detokenizer_.emplace(*model.tokenizer);
}

void ReplyBuilder::FillLogprobs(const TokenEvent& event, v1::TokenLogprobs* out) {
  out->set_token(static_cast<uint32_t>(event.token));
  out->set_logprob(event.logprob);
  for (const auto& [token, logprob] : event.top) {
    v1::TopLogprob* top = out->add_top();
    top->set_token(static_cast<uint32_t>(token));
    top->set_logprob(logprob);
  }
}

void ReplyBuilder::FillFinish(const Outcome& outcome, v1::Finish* out) const {
  out->set_reason(ToProto(outcome.reason));
  *out->mutable_usage() = coordinator::ToProto(outcome);
  v1::Timings* timings = out->mutable_timings();
  timings->set_queue_seconds(absl::ToDoubleSeconds(outcome.queue_time));
  timings->set_first_token_seconds(absl::ToDoubleSeconds(outcome.first_token_time));
  timings->set_total_seconds(absl::ToDoubleSeconds(outcome.total_time));
  out->set_seed(seed_);
}

}  // namespace conclave::coordinator
