#include "coordinator/batch_call.h"

#include <algorithm>
#include <utility>

#include "base/grpc_status.h"
#include "base/retry_delay.h"
#include "base/status_macros.h"
#include "coordinator/unread_events.h"

namespace conclave::coordinator {
namespace {

// A call has one in so many places of the queue at most: four batches leave none of each other out.
constexpr int kQueueParts = 4;

}  // namespace

class BatchCall::ItemSink final : public RequestSink {
 public:
  ItemSink(std::shared_ptr<BatchCall> call, size_t index) : call_(std::move(call)), index_(index) {}

  void OnPromptLogprobs(std::span<const PromptLogprob> logprobs) override {
    Keep(logprobs, call_->items_[index_].prompt);
  }
  void OnTokens(std::span<const TokenEvent> tokens) override {
    Keep(tokens, call_->items_[index_].tokens);
  }
  void OnHeadLogits(int, int, std::span<const float> logits) override {
    if (!call_->Holds(logits.size_bytes())) return;
    auto& all = call_->items_[index_].head_logits;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  void OnEnd(const Outcome& outcome) override { call_->Ended(index_, outcome); }

 private:
  template <typename Event>
  void Keep(std::span<const Event> events, std::vector<Event>& all) {
    size_t bytes = 0;
    for (const Event& event : events) bytes += BytesOf(event);
    if (call_->Holds(bytes)) all.insert(all.end(), events.begin(), events.end());
  }

  std::shared_ptr<BatchCall> call_;
  size_t index_;
};

BatchCall::BatchCall(const ServingModel& model, Engine& engine, base::Executor& executor,
                     Method method, grpc::CallbackServerContext& context,
                     grpc::ByteBuffer* response)
    : engine_(engine),
      executor_(executor),
      response_(response),
      most_open_(std::max(1, model.limits.max_queued / kQueueParts)),
      max_bytes_(model.limits.max_reply_bytes),
      write_limit_(context, absl::Seconds(model.limits.max_unread_seconds)),
      record_(method, context, engine.calls()) {}

void BatchCall::Refuse(const absl::Status& status) {
  self_ = shared_from_this();
  Close(base::ToGrpc(status));
}

void BatchCall::Close(const grpc::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    record_.End(status);
  }
  write_limit_.Begin(response_->Length());
  Finish(status);
}

void BatchCall::Start(std::vector<std::vector<Request>> requests, Compose compose) {
  self_ = shared_from_this();
  compose_ = std::move(compose);
  requests_ = std::move(requests);
  size_t items = 0;
  for (std::vector<Request>& forks : requests_) {
    for (Request& request : forks) request.sink = std::make_shared<ItemSink>(self_, items++);
  }
  items_.resize(items);
  Pump();
}

// Submits what there is room for, and finishes the call when nothing is left to wait for. Called
// after every change that may allow either.
void BatchCall::Pump() {
  size_t next = 0;
  while (TakeNext(next)) SubmitForks(next);
  {
    absl::MutexLock lock(&mutex_);
    const bool all_submitted = next_ == requests_.size() || !status_.ok();
    if (pumping_ || finished_ || open_ > 0 || !all_submitted) return;
    finished_ = true;
  }
  FinishCall();
}

// False when there is nothing to submit now, or another thread does it.
bool BatchCall::TakeNext(size_t& next) {
  absl::MutexLock lock(&mutex_);
  if (pumping_ || waits_ || !status_.ok() || next_ == requests_.size()) return false;
  const size_t items = requests_[next_].size();
  if (open_ > 0 && open_ + items > most_open_) return false;
  pumping_ = true;
  next = next_++;
  open_ += items;
  ends_ = 0;
  for (Request& request : requests_[next]) request.of_open_call = record_.admitted();
  return true;
}

void BatchCall::SubmitForks(size_t next) {
  const size_t items = requests_[next].size();
  const absl::StatusOr<std::vector<RequestId>> ids = engine_.SubmitForks(requests_[next]);
  bool failed = false;
  bool refused = false;
  {
    absl::MutexLock lock(&mutex_);
    pumping_ = false;
    if (ids.ok()) {
      record_.Admit();
      ids_.insert(ids_.end(), ids->begin(), ids->end());
    } else {
      open_ -= items;
      // Full: it is this one's turn again when another of the batch has ended, which may have
      // happened while the engine refused it.
      const bool full = absl::IsResourceExhausted(ids.status()) && (open_ > 0 || ends_ > 0) &&
                        base::RetryDelay(ids.status()).has_value();
      if (full) --next_;
      waits_ = full && ends_ == 0;
      refused = !full;
    }
    failed = !status_.ok();
  }
  if (refused) Fail(ids.status());
  if (ids.ok() && failed) {
    for (RequestId id : *ids) engine_.Cancel(id);
  }
}

void BatchCall::Ended(size_t index, const Outcome& outcome) {
  items_[index].outcome = outcome;
  std::vector<RequestId> rest;
  bool pump = false;
  {
    absl::MutexLock lock(&mutex_);
    record_.Add(outcome);
    rest = NoteFailure(outcome.status);
    --open_;
    ++ends_;
    waits_ = false;
    pump = open_ == 0 || next_ < requests_.size();
  }
  if (rest.empty() && !pump) return;
  // Not from here: a sink must not call the engine, nor hold up the scheduler with a reply.
  executor_.Post([self = shared_from_this(), rest = std::move(rest)] {
    for (RequestId id : rest) self->engine_.Cancel(id);
    self->Pump();
  });
}

// On the scheduler's thread.
bool BatchCall::Holds(size_t bytes) {
  const auto most = static_cast<size_t>(max_bytes_);
  const size_t before = bytes_.fetch_add(bytes);
  if (before + bytes <= most) return true;
  if (before > most) return false;  // it has failed
  std::vector<RequestId> rest;
  {
    absl::MutexLock lock(&mutex_);
    rest = NoteFailure(ReplyTooLarge("the results of this call take too much memory", max_bytes_));
  }
  executor_.Post([self = shared_from_this(), rest = std::move(rest)] {
    for (RequestId id : rest) self->engine_.Cancel(id);
  });
  return false;
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
  // Requests that were never taken have sinks, which hold this call.
  std::vector<std::vector<Request>> left(requests_.size());
  {
    absl::MutexLock lock(&mutex_);
    status = status_;
    left.swap(requests_);
  }
  left.clear();
  if (status.ok()) status = ComposeReply();
  items_.clear();  // the client may take its time
  Close(base::ToGrpc(status));
}

absl::Status BatchCall::ComposeReply() {
  ReplyParts reply(max_bytes_);
  compose_(items_, reply);
  ASSIGN_OR_RETURN(*response_, reply.Take());
  return absl::OkStatus();
}

void BatchCall::OnCancel() {
  Fail(absl::CancelledError("the client cancelled the call"));
  Pump();
}

void BatchCall::OnDone() {
  write_limit_.Leave();
  self_.reset();
}

}  // namespace conclave::coordinator
