#include "coordinator/generate_call.h"

#include <utility>
#include <vector>

#include "base/grpc_status.h"
#include "coordinator/raw_request.h"
#include "proto/conclave/v1/generation.pb.h"

namespace conclave::coordinator {

// Of one completion.
class GenerateCall::Sink final : public RequestSink {
 public:
  Sink(std::shared_ptr<GenerateCall> call, int completion)
      : call_(std::move(call)), completion_(completion) {}

  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    call_->OnPromptLogprobs(completion_, logprobs);
  }
  void OnTokens(std::span<const TokenEvent> tokens) override {
    call_->OnTokens(completion_, tokens);
  }
  void OnHeadLogits(int, int, std::span<const float>) override {}
  void OnEnd(const Outcome& outcome) override { call_->OnEnd(completion_, outcome); }

 private:
  std::shared_ptr<GenerateCall> call_;
  int completion_;
};

GenerateCall::GenerateCall(const ServingModel& model, Engine& engine, base::Executor& executor,
                           grpc::CallbackServerContext& context)
    : model_(model),
      engine_(engine),
      executor_(executor),
      write_limit_(context, absl::Seconds(model.limits.max_unread_seconds)),
      record_(Method::kGenerate, context, engine.calls()) {}

void GenerateCall::Refuse(const absl::Status& status) {
  self_ = shared_from_this();
  Close(base::ToGrpc(status));
}

void GenerateCall::Close(const grpc::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    record_.End(status);
  }
  Finish(status);
}

void GenerateCall::Start(std::vector<Request> completions) {
  self_ = shared_from_this();
  {
    absl::MutexLock lock(&mutex_);
    completions_.resize(completions.size());
    open_ = completions.size();
  }
  for (size_t i = 0; i < completions.size(); ++i) {
    builders_.emplace_back(model_, completions[i]);
    completions[i].sink = std::make_shared<Sink>(self_, static_cast<int>(i));
  }
  const absl::StatusOr<std::vector<RequestId>> ids = engine_.SubmitForks(completions);
  if (!ids.ok()) return Close(base::ToGrpc(ids.status()));
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    record_.Admit();
    ids_ = *ids;
    cancelled = cancelled_ || !status_.ok();
  }
  if (cancelled) CancelAll();
}

void GenerateCall::OnPromptLogprobs(int completion, std::span<const PromptLogprob> logprobs) {
  absl::MutexLock lock(&mutex_);
  if (broken_) return;
  completions_[completion].pending_prompt.Append(logprobs);
  CheckUnread();
  Schedule();
}

void GenerateCall::OnTokens(int completion, std::span<const TokenEvent> tokens) {
  absl::MutexLock lock(&mutex_);
  if (broken_) return;
  completions_[completion].pending.Append(tokens);
  CheckUnread();
  Schedule();
}

void GenerateCall::OnEnd(int completion, const Outcome& outcome) {
  absl::MutexLock lock(&mutex_);
  completions_[completion].outcome = outcome;
  record_.Add(outcome);
  --open_;
  const bool first_failure = status_.ok() && !outcome.status.ok();
  if (first_failure) status_ = outcome.status;
  // Not from here: a sink must not call the engine.
  if (first_failure && open_ > 0) {
    executor_.Post([self = shared_from_this()] { self->CancelAll(); });
  }
  Schedule();
}

void GenerateCall::CheckUnread() {
  size_t bytes = 0;
  for (const Completion& completion : completions_) {
    bytes += completion.pending_prompt.bytes() + completion.pending.bytes();
  }
  if (bytes <= static_cast<size_t>(model_.limits.max_unread_bytes)) return;
  broken_ = true;
  DropPending();
  if (status_.ok()) status_ = ReadsTooSlowly(model_.limits.max_unread_bytes);
  executor_.Post([self = shared_from_this()] { self->CancelAll(); });
}

void GenerateCall::DropPending() {
  for (Completion& completion : completions_) {
    completion.pending_prompt.Clear();
    completion.pending.Clear();
  }
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
  for (size_t i = 0; i < completions_.size() && !broken_; ++i) {
    const size_t index = (next_writer_ + i) % completions_.size();
    Completion& completion = completions_[index];
    const bool ends = completion.outcome.has_value() && !completion.last_written && status_.ok();
    if (completion.pending_prompt.empty() && completion.pending.empty() && !ends) continue;
    next_writer_ = index + 1;
    work.completion = static_cast<int>(index);
    work.prompt = completion.pending_prompt.Take();
    if (!completion.pending_prompt.empty()) return work;
    work.tokens = completion.pending.Take();
    work.last = completion.last_written = ends && completion.pending.empty();
    return work;
  }
  if (open_ == 0 && !finished_) {
    finished_ = true;
    work.finish = base::ToGrpc(status_);
  } else {
    busy_ = false;
  }
  return work;
}

// Builds and writes what is pending; called with busy_ set, by one thread at a time.
void GenerateCall::Pump() {
  const Work work = TakeWork();
  if (work.finish.has_value()) return Close(*work.finish);
  if (work.completion < 0) return;
  v1::GenerateResponse response;
  response.set_index(static_cast<uint32_t>(work.completion));
  ReplyBuilder& builder = builders_[work.completion];
  builder.AppendPrompt(work.prompt, &response);
  builder.Append(work.tokens, &response);
  if (work.last) builder.Finish(*completions_[work.completion].outcome, &response);
  written_ = SerializeResponse(response);
  write_limit_.Begin(written_.Length());
  StartWrite(&written_);  // OnWriteDone pumps again
}

void GenerateCall::OnWriteDone(bool ok) {
  write_limit_.End();
  if (!ok) {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    DropPending();
  }
  Pump();
}

void GenerateCall::CancelAll() {
  std::vector<RequestId> ids;
  {
    absl::MutexLock lock(&mutex_);
    ids = ids_;
  }
  for (RequestId id : ids) engine_.Cancel(id);
}

void GenerateCall::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (finished_) return;
  }
  CancelAll();
}

void GenerateCall::OnDone() {
  write_limit_.Leave();
  self_.reset();
}

}  // namespace conclave::coordinator
