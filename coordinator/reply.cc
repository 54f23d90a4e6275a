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
  usage.set_cached_tokens(static_cast<uint32_t>(outcome.cached_tokens));
  return usage;
}

v1::Timings TimingsOf(const Outcome& outcome) {
  v1::Timings timings;
  timings.set_queue_seconds(absl::ToDoubleSeconds(outcome.queue_time));
  timings.set_first_token_seconds(absl::ToDoubleSeconds(outcome.first_token_time));
  timings.set_total_seconds(absl::ToDoubleSeconds(outcome.total_time));
  return timings;
}

ReplyBuilder::ReplyBuilder(const ServingModel& model, const Request& request)
    : logprobs_(request.sampling.logprobs() >= 0), seed_(request.sampling.seed()) {
  if (model.tokenizer != nullptr) text_.emplace(*model.tokenizer);
  if (!request.echo) return;
  echo_.emplace();
  echo_->mutable_tokens()->Add(request.tokens.begin(), request.tokens.end());
  echo_->set_text(request.prompt_text);
}

template <typename Event>
void ReplyBuilder::FillLogprobs(const Event& event, v1::TokenLogprobs* out) {
  out->set_token(static_cast<uint32_t>(event.token));
  out->set_logprob(event.logprob);
  for (const auto& [token, logprob] : event.top) {
    v1::TopLogprob* top = out->add_top();
    top->set_token(static_cast<uint32_t>(token));
    top->set_logprob(logprob);
  }
}

template void ReplyBuilder::FillLogprobs(const TokenEvent& event, v1::TokenLogprobs* out);
template void ReplyBuilder::FillLogprobs(const PromptLogprob& event, v1::TokenLogprobs* out);

void ReplyBuilder::FillFinish(const Outcome& outcome, v1::Finish* out) const {
  out->set_reason(ToProto(outcome.reason));
  *out->mutable_usage() = coordinator::ToProto(outcome);
  *out->mutable_timings() = TimingsOf(outcome);
  out->set_seed(seed_);
  if (outcome.reason != FinishReason::kStop) return;
  if (outcome.stop_string.empty()) {
    out->set_stop_token(static_cast<uint32_t>(outcome.stop_token));
  } else {
    out->set_stop_string(outcome.stop_string);
  }
}

}  // namespace conclave::coordinator
