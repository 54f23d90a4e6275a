#include "coordinator/generate_call.h"

#include <utility>

#include "base/grpc_status.h"
#include "coordinator/raw_request.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

GenerateCall::GenerateCall(const ServingModel& model, Engine& engine, base::Executor& executor)
    : model_(model), engine_(engine), executor_(executor) {}

void GenerateCall::Refuse(const absl::Status& status) {
  self_ = shared_from_this();
  Finish(base::ToGrpc(status));
}

void GenerateCall::Start(Request request) {
  self_ = shared_from_this();
  builder_.emplace(model_, request);
  request.sink = self_;
  absl::StatusOr<RequestId> id = engine_.Submit(std::move(request));
  if (!id.ok()) {
    Finish(base::ToGrpc(id.status()));
    return;
  }
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    id_ = *id;
    submitted_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) engine_.Cancel(*id);
}

void GenerateCall::OnPromptLogprobs(std::span<const PromptLogprob> logprobs) {
  absl::MutexLock lock(&mutex_);
  pending_prompt_.insert(pending_prompt_.end(), logprobs.begin(), logprobs.end());
  Schedule();
}

void GenerateCall::OnTokens(std::span<const TokenEvent> tokens) {
  absl::MutexLock lock(&mutex_);
  pending_.insert(pending_.end(), tokens.begin(), tokens.end());
  Schedule();
}

void GenerateCall::OnHeadLogits(int, int, std::span<const float>) {}

void GenerateCall::OnEnd(const Outcome& outcome) {
  absl::MutexLock lock(&mutex_);
  outcome_ = outcome;
  Schedule();
}

// mutex_ is held.
void GenerateCall::Schedule() {
  if (busy_) return;
  busy_ = true;
  executor_.Post([self = shared_from_this()] { self->Pump(); });
}

GenerateCall::Work GenerateCall::TakeWork() {
  absl::MutexLock lock(&mutex_);
  Work work;
  const bool writable = !broken_ && !last_written_;
  if (writable) {
    work.prompt = std::exchange(pending_prompt_, {});
    work.tokens = std::exchange(pending_, {});
  }
  if (outcome_.has_value() && !finished_) {
    if (writable && outcome_->status.ok()) {
      work.last = true;
      last_written_ = true;
    } else if (!work.writes()) {
      work.finish = base::ToGrpc(outcome_->status);
      finished_ = true;
    }
  }
  if (!work.writes() && !work.finish.has_value()) busy_ = false;
  return work;
}

// Builds and writes what is pending; called with busy_ set, by one thread at a time.
void GenerateCall::Pump() {
  const Work work = TakeWork();
  if (work.finish.has_value()) {
    Finish(*work.finish);
    return;
  }
  if (!work.writes()) return;
  v1::GenerateResponse response;
  builder_->AppendPrompt(work.prompt, &response);
  builder_->Append(work.tokens, &response);
  if (work.last) builder_->Finish(*outcome_, &response);
  written_ = SerializeResponse(response);
  StartWrite(&written_);  // OnWriteDone pumps again
}

void GenerateCall::OnWriteDone(bool ok) {
  if (!ok) {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    pending_prompt_.clear();
    pending_.clear();
  }
  Pump();
}

void GenerateCall::OnCancel() {
  RequestId id = 0;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (!submitted_ || finished_) return;
    id = id_;
  }
  engine_.Cancel(id);
}

void GenerateCall::OnDone() { self_.reset(); }

}  // namespace conclave::coordinator
