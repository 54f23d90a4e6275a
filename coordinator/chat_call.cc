#include "coordinator/chat_call.h"

#include <utility>

#include "base/grpc_status.h"
#include "coordinator/raw_request.h"

namespace conclave::coordinator {

ChatCall::ChatCall(const ServingModel& model, Engine& engine, base::Executor& executor,
                   grpc::CallbackServerContext& context)
    : model_(model),
      engine_(engine),
      executor_(executor),
      write_limit_(context, absl::Seconds(model.limits.max_unread_seconds)),
      record_(Method::kChat, context, engine.calls()) {}

void ChatCall::Refuse(const absl::Status& status) {
  self_ = shared_from_this();
  Close(base::ToGrpc(status));
}

void ChatCall::Close(const grpc::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    record_.End(status);
  }
  Finish(status);
}

void ChatCall::Start(Request request, ChatContext context) {
  self_ = shared_from_this();
  accounts_.emplace(model_, request);
  reply_.emplace(model_, std::move(context));
  request.sink = self_;
  absl::StatusOr<RequestId> id = engine_.Submit(std::move(request));
  if (!id.ok()) return Close(base::ToGrpc(id.status()));
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    record_.Admit();
    id_ = *id;
    submitted_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) engine_.Cancel(*id);
}

void ChatCall::OnTokens(std::span<const TokenEvent> tokens) {
  absl::MutexLock lock(&mutex_);
  if (broken_) return;
  pending_.Append(tokens);
  if (pending_.bytes() > static_cast<size_t>(model_.limits.max_unread_bytes)) {
    broken_ = true;
    pending_.Clear();
    status_ = ReadsTooSlowly(model_.limits.max_unread_bytes);
    // Not from here: a sink must not call the engine.
    executor_.Post([self = shared_from_this()] { self->OnCancel(); });
  }
  Schedule();
}

void ChatCall::OnHeadLogits(int, int, std::span<const float>) {}

void ChatCall::OnEnd(const Outcome& outcome) {
  absl::MutexLock lock(&mutex_);
  outcome_ = outcome;
  record_.Add(outcome);
  Schedule();
}

// mutex_ is held.
void ChatCall::Schedule() {
  if (busy_) return;
  busy_ = true;
  executor_.Post([self = shared_from_this()] { self->Pump(); });
}

ChatCall::Work ChatCall::TakeWork() {
  absl::MutexLock lock(&mutex_);
  Work work;
  const bool writable = !broken_ && !last_parsed_;
  if (writable) work.tokens = pending_.Take();
  if (outcome_.has_value() && !finished_ && pending_.empty()) {
    if (writable && outcome_->status.ok()) {
      work.last = true;
      last_parsed_ = true;
    } else if (work.tokens.empty()) {
      work.finish = base::ToGrpc(status_.ok() ? outcome_->status : status_);
      finished_ = true;
    }
  }
  if (work.tokens.empty() && !work.last && !work.finish.has_value()) busy_ = false;
  return work;
}

// Parses and writes what is pending until there is no more, or a write is under way, whose end
// pumps again. Called with busy_ set, by one thread at a time.
void ChatCall::Pump() {
  while (!WriteNext()) {
    const Work work = TakeWork();
    if (work.finish.has_value()) return Close(*work.finish);
    if (work.tokens.empty() && !work.last) return;
    Parse(work);
  }
}

void ChatCall::Parse(const Work& work) {
  std::vector<v1::ChatResponse> responses;
  reply_->Append(work.tokens, responses);
  if (work.last) {
    reply_->Finish(outcome_->reason, responses);
    v1::GenerateResponse accounts;
    accounts_->Finish(*outcome_, &accounts);
    v1::ChatFinish* finish = responses.back().mutable_finish();
    *finish->mutable_usage() = accounts.finish().usage();
    *finish->mutable_timings() = accounts.finish().timings();
    finish->set_seed(accounts.finish().seed());
  }
  for (const v1::ChatResponse& response : responses) {
    unwritten_.push_back(SerializeResponse(response));
  }
}

// False when there is nothing to write.
bool ChatCall::WriteNext() {
  if (unwritten_.empty()) return false;
  written_ = std::move(unwritten_.front());
  unwritten_.pop_front();
  write_limit_.Begin(written_.Length());
  StartWrite(&written_);
  return true;
}

void ChatCall::OnWriteDone(bool ok) {
  write_limit_.End();
  if (!ok) {
    unwritten_.clear();
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    pending_.Clear();
  }
  Pump();
}

void ChatCall::OnCancel() {
  RequestId id = 0;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (!submitted_ || finished_) return;
    id = id_;
  }
  engine_.Cancel(id);
}

void ChatCall::OnDone() {
  write_limit_.Leave();
  self_.reset();
}

}  // namespace conclave::coordinator
