#include "client/serve_monitor.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/check.h"

namespace conclave::client {
namespace {

// Often while a person waits for the start, seldom when all is well.
constexpr absl::Duration kNotServingInterval = absl::Milliseconds(50);
constexpr absl::Duration kServingInterval = absl::Milliseconds(500);
constexpr absl::Duration kTimeout = absl::Seconds(2);

}  // namespace

ServeMonitor::ServeMonitor(const std::string& server)
    : client_(server),
      event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this] { Watch(); }) {}

ServeMonitor::~ServeMonitor() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  cancellation_.Cancel();
  thread_.join();
  close(event_fd_);
}

ServeSnapshot ServeMonitor::Take() {
  uint64_t count = 0;
  const ssize_t size = read(event_fd_, &count, sizeof(count));
  CONCLAVE_CHECK(size == sizeof(count) || size < 0);  // < 0: nothing new
  absl::MutexLock lock(&mutex_);
  return snapshot_;
}

ServeSnapshot ServeMonitor::Ask() {
  const CallOptions options{.timeout = kTimeout, .cancellation = &cancellation_};
  ServeSnapshot snapshot;
  // The ranks first: when the service is said to be up, they are known.
  if (auto cluster = client_.GetCluster(options); cluster.ok()) {
    snapshot.cluster = *std::move(cluster);
  }
  const auto serving = client_.Serving(options);
  snapshot.serving = serving.ok() && *serving;
  return snapshot;
}

void ServeMonitor::Watch() {
  absl::MutexLock lock(&mutex_);
  while (!stop_) {
    mutex_.Unlock();
    ServeSnapshot snapshot = Ask();
    mutex_.Lock();
    const absl::Duration wait = snapshot.serving ? kServingInterval : kNotServingInterval;
    snapshot_ = std::move(snapshot);
    const uint64_t one = 1;
    CONCLAVE_CHECK(write(event_fd_, &one, sizeof(one)) == sizeof(one));
    mutex_.AwaitWithTimeout(absl::Condition(&stop_), wait);
  }
}

}  // namespace conclave::client
