#include "coordinator/write_limit.h"

#include <grpcpp/alarm.h>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/logging.h"

namespace conclave::coordinator {
namespace {

// Whoever takes less is as good as gone.
constexpr double kSlowestBytesPerSecond = 256 << 10;

}  // namespace

// An alarm is set when a write begins and none is, and looks at the write that is then under way:
// at most one for each `limit`, however many writes.
struct WriteLimit::State : std::enable_shared_from_this<State> {
  State(grpc::CallbackServerContext* borrowed, absl::Duration most)
      : limit(most), context(borrowed) {}

  void SetAlarm(absl::Duration wait) {
    auto other = std::make_unique<grpc::Alarm>();
    other->Set(absl::ToChronoTime(absl::Now() + wait),
               [self = shared_from_this()](bool) { self->Look(); });
    absl::MutexLock lock(&mutex);
    alarm.swap(other);
  }

  void Look() {
    grpc::CallbackServerContext* cancelled = nullptr;
    absl::Duration left;
    {
      absl::MutexLock lock(&mutex);
      alarm_set = context != nullptr && writing;
      if (!alarm_set) return;
      left = began + allowed - base::SteadyNow();
      cancelling = left <= absl::ZeroDuration();
      if (cancelling) cancelled = context;
    }
    if (cancelled == nullptr) return SetAlarm(left);
    base::Log().info("event=client_takes_nothing peer={}", cancelled->peer());
    cancelled->TryCancel();
    absl::MutexLock lock(&mutex);
    cancelling = false;
  }

  const absl::Duration limit;
  absl::Mutex mutex;  // guards all below; gRPC, which has locks of its own, is not called with it
  grpc::CallbackServerContext* context ABSL_GUARDED_BY(mutex);
  bool writing ABSL_GUARDED_BY(mutex) = false;
  bool cancelling ABSL_GUARDED_BY(mutex) = false;  // the context is in use without the mutex
  bool alarm_set ABSL_GUARDED_BY(mutex) = false;
  absl::Time began ABSL_GUARDED_BY(mutex);
  absl::Duration allowed ABSL_GUARDED_BY(mutex);  // from then on
  std::unique_ptr<grpc::Alarm> alarm ABSL_GUARDED_BY(mutex);
};

WriteLimit::WriteLimit(grpc::CallbackServerContext& context, absl::Duration limit)
    : state_(limit > absl::ZeroDuration() ? std::make_shared<State>(&context, limit) : nullptr) {}

void WriteLimit::Begin(size_t bytes) {
  if (state_ == nullptr) return;
  const absl::Duration allowed =
      state_->limit + absl::Seconds(static_cast<double>(bytes) / kSlowestBytesPerSecond);
  {
    absl::MutexLock lock(&state_->mutex);
    if (state_->context == nullptr) return;
    state_->writing = true;
    state_->began = base::SteadyNow();
    state_->allowed = allowed;
    if (state_->alarm_set) return;
    state_->alarm_set = true;
  }
  state_->SetAlarm(allowed);
}

void WriteLimit::End() {
  if (state_ == nullptr) return;
  absl::MutexLock lock(&state_->mutex);
  state_->writing = false;
}

void WriteLimit::Leave() {
  if (state_ == nullptr) return;
  std::unique_ptr<grpc::Alarm> alarm;  // cancelled after the mutex is left
  absl::MutexLock lock(&state_->mutex);
  state_->mutex.Await(absl::Condition(
      +[](bool* cancelling) { return !*cancelling; }, &state_->cancelling));
  state_->context = nullptr;
  alarm = std::move(state_->alarm);
}

}  // namespace conclave::coordinator
