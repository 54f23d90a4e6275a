#include "coordinator/engine_metrics.h"

#include <algorithm>
#include <utility>

namespace conclave::coordinator {
namespace {

class MeasuredSink final : public RequestSink {
 public:
  MeasuredSink(std::shared_ptr<RequestSink> sink, EngineMetrics& metrics, const base::Clock& clock)
      : sink_(std::move(sink)), metrics_(metrics), clock_(clock), last_(clock.Now()) {}

  void OnTokens(std::span<const TokenEvent> tokens) override {
    const absl::Time now = clock_.Now();
    (begun_ ? metrics_.between_tokens : metrics_.first_token).Observe(now - last_);
    metrics_.generated_tokens += tokens.size();
    begun_ = true;
    last_ = now;
    sink_->OnTokens(tokens);
  }
  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    sink_->OnPromptLogprobs(logprobs);
  }
  void OnHeadLogits(int head, int first_position, std::span<const float> logits) override {
    sink_->OnHeadLogits(head, first_position, logits);
  }
  void OnEnd(const Outcome& outcome) override {
    metrics_.queue.Observe(outcome.queue_time);
    metrics_.whole.Observe(outcome.total_time);
    if (outcome.status.ok() && outcome.reason == FinishReason::kHeads) {
      metrics_.classified_tokens += static_cast<uint64_t>(outcome.prompt_tokens);
    }
    sink_->OnEnd(outcome);
  }

 private:
  const std::shared_ptr<RequestSink> sink_;
  EngineMetrics& metrics_;
  const base::Clock& clock_;
  absl::Time last_;  // token, or the request's arrival
  bool begun_ = false;
};

}  // namespace

void EngineMetrics::ObserveStep(const internal::v1::StepResult& result) {
  const auto nanoseconds = [](uint64_t ns) { return absl::Nanoseconds(static_cast<int64_t>(ns)); };
  const uint64_t exchange = std::min(result.exchange_ns(), result.step_ns());
  const uint64_t wait = std::min(result.wait_ns(), exchange);
  steps[0].Observe(nanoseconds(result.step_ns() - exchange));
  steps[1].Observe(nanoseconds(exchange - wait));
  steps[2].Observe(nanoseconds(wait));
}

std::shared_ptr<RequestSink> Measured(std::shared_ptr<RequestSink> sink, EngineMetrics& metrics,
                                      const base::Clock& clock) {
  return std::make_shared<MeasuredSink>(std::move(sink), metrics, clock);
}

}  // namespace conclave::coordinator
