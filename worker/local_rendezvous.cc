#include <fmt/format.h>

#include <map>
#include <memory>
#include <string>

#include "absl/synchronization/mutex.h"
#include "worker/communicator.h"

namespace conclave::worker {
namespace {

class LocalRendezvous final : public Rendezvous {
 public:
  absl::Status Put(const std::string& key, const std::string& value) override {
    absl::MutexLock lock(&mutex_);
    values_[key] = value;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    absl::MutexLock lock(&mutex_);
    auto present = [this, &key]()
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return values_.contains(key); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&present), timeout)) {
      return absl::DeadlineExceededError(
          fmt::format("nobody published '{}' in {}", key, absl::FormatDuration(timeout)));
    }
    return values_[key];
  }

 private:
  absl::Mutex mutex_;  // guards values_
  std::map<std::string, std::string> values_;
};

}  // namespace

std::unique_ptr<Rendezvous> MakeLocalRendezvous() { return std::make_unique<LocalRendezvous>(); }

}  // namespace conclave::worker
