// Tells ThreadSanitizer of the happens-before edges that abseil's locks and gRPC's completion
// queues make. Debian's libraries are not instrumented, and abseil sleeps by futex, which
// ThreadSanitizer does not see: without this file every field that an absl::Mutex guards looks like
// a race, and so does every object that gRPC hands to the next thread. Linked into every program by
// --config=tsan.
//
// The functions below stand before those of the shared libraries in the order of symbol lookup, for
// our calls and for gRPC's own. Each passes on to the real one. While a lock's function runs,
// accesses of its thread are not recorded: it evaluates other threads' Conditions, holding their
// mutex in a way that shows nowhere.

#include <dlfcn.h>
#include <grpc/grpc.h>

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace {

class Unrecorded {
 public:
  Unrecorded() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unrecorded() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

void* Next(const char* symbol) {
  void* const found = dlsym(RTLD_NEXT, symbol);
  if (found != nullptr) return found;
  std::fprintf(stderr, "bazel/tsan: no %s in these libraries: correct its name in edges.cc\n",
               symbol);
  std::abort();
}

}  // namespace

// The real function, by its mangled name.
#define CONCLAVE_REAL(type, name)              \
  static const std::add_pointer_t<type> real = \
      reinterpret_cast<std::add_pointer_t<type>>(Next("_ZN" name))
#define CONCLAVE_REAL_CONST(type, name)        \
  static const std::add_pointer_t<type> real = \
      reinterpret_cast<std::add_pointer_t<type>>(Next("_ZNK" name))

namespace absl {
ABSL_NAMESPACE_BEGIN

namespace {

// What a call that leaves `lock` and takes it again means to other threads.
template <typename Call>
auto Waiting(void* lock, const Call& call) {
  __tsan_release(lock);
  const auto result = [&] {
    Unrecorded unrecorded;
    return call();
  }();
  __tsan_acquire(lock);
  return result;
}

}  // namespace

void Mutex::Lock() {
  CONCLAVE_REAL(void(Mutex*), "4absl7debian35Mutex4LockEv");
  {
    Unrecorded unrecorded;
    real(this);
  }
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  CONCLAVE_REAL(void(Mutex*), "4absl7debian35Mutex6UnlockEv");
  __tsan_release(this);
  Unrecorded unrecorded;
  real(this);
}

bool Mutex::TryLock() {
  CONCLAVE_REAL(bool(Mutex*), "4absl7debian35Mutex7TryLockEv");
  const bool locked = real(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Await(const Condition& condition) {
  CONCLAVE_REAL(void(Mutex*, const Condition&), "4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
  Waiting(this, [&] { return real(this, condition), true; });
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  CONCLAVE_REAL(bool(Mutex*, const Condition&, Duration),
                "4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  return Waiting(this, [&] { return real(this, condition, timeout); });
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  CONCLAVE_REAL(bool(Mutex*, const Condition&, Time),
                "4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return Waiting(this, [&] { return real(this, condition, deadline); });
}

void CondVar::Wait(Mutex* mutex) {
  CONCLAVE_REAL(void(CondVar*, Mutex*), "4absl7debian37CondVar4WaitEPNS0_5MutexE");
  Waiting(mutex, [&] { return real(this, mutex), true; });
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  CONCLAVE_REAL(bool(CondVar*, Mutex*, Time),
                "4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  return Waiting(mutex, [&] { return real(this, mutex, deadline); });
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  CONCLAVE_REAL(bool(CondVar*, Mutex*, Duration),
                "4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  return Waiting(mutex, [&] { return real(this, mutex, timeout); });
}

void Notification::Notify() {
  CONCLAVE_REAL(void(Notification*), "4absl7debian312Notification6NotifyEv");
  __tsan_release(this);
  real(this);
}

void Notification::WaitForNotification() const {
  CONCLAVE_REAL_CONST(void(const Notification*),
                      "4absl7debian312Notification19WaitForNotificationEv");
  real(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  CONCLAVE_REAL_CONST(bool(const Notification*, Duration),
                      "4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = real(this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

bool BlockingCounter::DecrementCount() {
  CONCLAVE_REAL(bool(BlockingCounter*), "4absl7debian315BlockingCounter14DecrementCountEv");
  __tsan_release(this);
  return real(this);
}

void BlockingCounter::Wait() {
  CONCLAVE_REAL(void(BlockingCounter*), "4absl7debian315BlockingCounter4WaitEv");
  real(this);
  __tsan_acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl

// A batch of operations begins with all that its thread did before, and whoever takes its
// completion from the queue sees that.
grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static const auto real =
      reinterpret_cast<decltype(&grpc_call_start_batch)>(Next("grpc_call_start_batch"));
  __tsan_release(tag);
  return real(call, ops, count, tag, reserved);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  static const auto real =
      reinterpret_cast<decltype(&grpc_completion_queue_next)>(Next("grpc_completion_queue_next"));
  const grpc_event event = real(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  static const auto real =
      reinterpret_cast<decltype(&grpc_completion_queue_pluck)>(Next("grpc_completion_queue_pluck"));
  const grpc_event event = real(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(tag);
  return event;
}
