#include "coordinator/batch_call.h"

#include <utility>

#include "base/grpc_status.h"

namespace conclave::coordinator {

class BatchCall::ItemSink final : public RequestSink {
 public:
  ItemSink(std::shared_ptr<BatchCall> call, size_t index) : call_(std::move(call)), index_(index) {}

  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    auto& all = call_->items_[index_].prompt;
    all.insert(all.end(), logprobs.begin(), logprobs.end());
  }
  void OnTokens(std::span<const TokenEvent> tokens) override {
    auto& all = call_->items_[index_].tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  void OnHeadLogits(int, int, std::span<const float> logits) override {
    auto& all = call_->items_[index_].head_logits;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  void OnEnd(const Outcome& outcome) override { call_->Ended(index_, outcome); }

 private:
  std::shared_ptr<BatchCall> call_;
  size_t index_;
};

BatchCall::BatchCall(Engine& engine, base::Executor& executor, grpc::ByteBuffer* response)
    : engine_(engine), executor_(executor), response_(response) {}

void BatchCall::Refuse(const absl::Status& status) {
  self_ = shared_from_this();
  Finish(base::ToGrpc(status));
}

void BatchCall::Start(std::vector<Request> requests, Compose compose) {
  self_ = shared_from_this();
  compose_ = std::move(compose);
  items_.resize(requests.size());
  {
    absl::MutexLock lock(&mutex_);
    open_ = 1;
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].sink = std::make_shared<ItemSink>(self_, i);
    {
      absl::MutexLock lock(&mutex_);
      if (!status_.ok()) break;
      ++open_;
    }
    absl::StatusOr<RequestId> id = engine_.Submit(std::move(requests[i]));
    if (!id.ok()) {
      Fail(id.status());
      absl::MutexLock lock(&mutex_);
      --open_;
      break;
    }
    bool failed = false;
    {
      absl::MutexLock lock(&mutex_);
      ids_.push_back(*id);
      failed = !status_.ok();
    }
    if (failed) engine_.Cancel(*id);
  }
  bool last = false;
  {
    absl::MutexLock lock(&mutex_);
    last = --open_ == 0;
  }
  if (last) FinishCall();
}

void BatchCall::Ended(size_t index, const Outcome& outcome) {
  items_[index].outcome = outcome;
  std::vector<RequestId> rest;
  bool last = false;
  {
    absl::MutexLock lock(&mutex_);
    rest = NoteFailure(outcome.status);
    last = --open_ == 0;
  }
  if (rest.empty() && !last) return;
  // Not from here: a sink must not call the engine, nor hold up the scheduler with a reply.
  executor_.Post([self = shared_from_this(), rest = std::move(rest), last] {
    for (RequestId id : rest) self->engine_.Cancel(id);
    if (last) self->FinishCall();
  });
}

std::vector<RequestId> BatchCall::NoteFailure(const absl::Status& status) {
  if (status.ok() || !status_.ok()) return {};
  status_ = status;
  return ids_;
}

void BatchCall::Fail(const absl::Status& status) {
  std::vector<RequestId> rest;
  {
    absl::MutexLock lock(&mutex_);
    rest = NoteFailure(status);
  }
  for (RequestId id : rest) engine_.Cancel(id);
}

void BatchCall::FinishCall() {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = status_;
  }
  if (status.ok()) *response_ = compose_(items_);
  Finish(base::ToGrpc(status));
}

void BatchCall::OnCancel() { Fail(absl::CancelledError("the client cancelled the call")); }

void BatchCall::OnDone() { self_.reset(); }

}  // namespace conclave::coordinator
