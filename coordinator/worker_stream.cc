#include "coordinator/worker_stream.h"

#include <deque>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace conclave::coordinator {
namespace {

using internal::v1::CoordinatorMessage;
using internal::v1::WorkerMessage;

// The write side. Outlives the call: the engine may hold it longer. Calls into the reactor are made
// with the lock held, so that the reactor is there; gRPC never runs a reaction inside such a call.
class StreamLink final : public WorkerLink {
 public:
  StreamLink(WorkerReactor& reactor, grpc::CallbackServerContext& context)
      : reactor_(&reactor), context_(&context) {}

  void Send(CoordinatorMessage message) override {
    absl::MutexLock lock(&mutex_);
    if (closing_) return;
    queue_.push_back(std::move(message));
    Advance();
  }

  void Close() override {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
    Advance();
  }

  void Abort() override {
    absl::MutexLock lock(&mutex_);
    if (!finished_) context_->TryCancel();  // a write that the peer does not read ends, too
    Drop();
    Advance();
  }

  // The peer is gone or has nothing more to say.
  void PeerDone() {
    absl::MutexLock lock(&mutex_);
    Drop();
    Advance();
  }

  void WriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    queue_.pop_front();
    if (!ok) Drop();
    Advance();
  }

 private:
  // Forgets what is not being written.
  void Drop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    closing_ = true;
    queue_.resize(writing_ ? 1 : 0);
  }

  // Starts what can be started. After Finish the reactor may be gone, and is not touched again.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || finished_) return;
    if (!queue_.empty()) {
      writing_ = true;
      reactor_->StartWrite(&queue_.front());
    } else if (closing_) {
      finished_ = true;
      reactor_->Finish(grpc::Status::OK);
    }
  }

  absl::Mutex mutex_;  // guards all below
  WorkerReactor* const reactor_;
  grpc::CallbackServerContext* const context_;
  std::deque<CoordinatorMessage> queue_ ABSL_GUARDED_BY(mutex_);  // the front is being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;   // nothing more is accepted
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called
};

class WorkerStream final : public WorkerReactor {
 public:
  WorkerStream(WorkerId worker, WorkerEvents& events, grpc::CallbackServerContext& context)
      : worker_(worker), events_(events), link_(std::make_shared<StreamLink>(*this, context)) {}

  void Start() {
    events_.OnWorkerJoined(worker_, link_);
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      events_.OnWorkerGone(worker_, "its stream ended");
      link_->PeerDone();
      return;
    }
    events_.OnWorkerMessage(worker_, std::move(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override { link_->WriteDone(ok); }

  void OnDone() override { delete this; }

 private:
  const WorkerId worker_;
  WorkerEvents& events_;
  const std::shared_ptr<StreamLink> link_;
  WorkerMessage incoming_;
};

}  // namespace

WorkerReactor* StartWorkerStream(WorkerId worker, WorkerEvents& events,
                                 grpc::CallbackServerContext& context) {
  auto* stream = new WorkerStream(worker, events, context);
  stream->Start();
  return stream;
}

}  // namespace conclave::coordinator
