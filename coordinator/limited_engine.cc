#include "coordinator/limited_engine.h"

#include <memory>
#include <utility>

#include "base/status_macros.h"

namespace conclave::coordinator {
namespace {

// Tells the account of a request's end.
class CountedSink final : public RequestSink {
 public:
  CountedSink(std::shared_ptr<ApiKeyAccount> account, std::shared_ptr<RequestSink> sink)
      : account_(std::move(account)), sink_(std::move(sink)) {}

  const std::shared_ptr<RequestSink>& sink() const { return sink_; }

  void OnTokens(std::span<const TokenEvent> tokens) override { sink_->OnTokens(tokens); }
  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    sink_->OnPromptLogprobs(logprobs);
  }
  void OnHeadLogits(int head, int first_position, std::span<const float> logits) override {
    sink_->OnHeadLogits(head, first_position, logits);
  }
  // The account first: who sees the end may ask again.
  void OnEnd(const Outcome& outcome) override {
    account_->End(outcome.completion_tokens);
    sink_->OnEnd(outcome);
  }

 private:
  const std::shared_ptr<ApiKeyAccount> account_;
  const std::shared_ptr<RequestSink> sink_;
};

}  // namespace

absl::StatusOr<std::vector<RequestId>> LimitedEngine::SubmitForks(std::vector<Request>& requests) {
  const std::shared_ptr<ApiKeyAccount> account =
      requests.empty() ? nullptr : requests.front().account;
  if (account == nullptr) return engine_.SubmitForks(requests);
  const int count = static_cast<int>(requests.size());
  int64_t prompt_tokens = 0;
  for (const Request& request : requests) {
    prompt_tokens += static_cast<int64_t>(request.tokens.size());
  }
  RETURN_IF_ERROR(account->Take(count, prompt_tokens));
  for (Request& request : requests) {
    request.sink = std::make_shared<CountedSink>(account, std::move(request.sink));
  }
  absl::StatusOr<std::vector<RequestId>> ids = engine_.SubmitForks(requests);
  if (ids.ok()) return ids;
  account->PutBack(count, prompt_tokens);
  for (Request& request : requests) {  // as they were
    request.sink = static_cast<const CountedSink&>(*request.sink).sink();
  }
  return ids;
}

}  // namespace conclave::coordinator
