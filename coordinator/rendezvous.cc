#include "coordinator/rendezvous.h"

#include <fmt/format.h>

#include <utility>

namespace conclave::coordinator {
namespace {

absl::Status OldEpoch(uint64_t epoch) {
  return absl::AbortedError(fmt::format("epoch {} is over", epoch));
}

}  // namespace

void Rendezvous::BeginEpoch(uint64_t epoch) { Change(true, epoch); }

void Rendezvous::EndEpoch() { Change(false, 0); }

void Rendezvous::Change(bool active, uint64_t epoch) {
  std::map<WaiterId, Waiter> orphans;
  uint64_t old_epoch = 0;
  {
    absl::MutexLock lock(&mutex_);
    old_epoch = epoch_;
    active_ = active;
    if (active) epoch_ = epoch;
    values_.clear();
    total_bytes_ = 0;
    orphans.swap(waiters_);
  }
  for (auto& [id, waiter] : orphans) waiter.callback(OldEpoch(old_epoch));
}

bool Rendezvous::IsCurrent(uint64_t epoch) const { return active_ && epoch == epoch_; }

absl::Status Rendezvous::Put(uint64_t epoch, const std::string& key, std::string value) {
  std::vector<Callback> ready;
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(epoch)) return OldEpoch(epoch);
    const size_t bytes = key.size() + value.size();
    const auto old = values_.find(key);
    const size_t replaced = old == values_.end() ? 0 : key.size() + old->second.size();
    if (bytes > kMaxValueBytes || total_bytes_ - replaced + bytes > kMaxTotalBytes) {
      return absl::ResourceExhaustedError(fmt::format(
          "rendezvous value '{:.64}' has {} bytes on top of {}: at most {} each and {} in all", key,
          bytes, total_bytes_, kMaxValueBytes, kMaxTotalBytes));
    }
    total_bytes_ = total_bytes_ - replaced + bytes;
    values_[key] = value;
    ready = TakeWaiters(key);
  }
  for (const Callback& callback : ready) callback(value);
  return absl::OkStatus();
}

std::vector<Rendezvous::Callback> Rendezvous::TakeWaiters(const std::string& key) {
  std::vector<Callback> taken;
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    if (it->second.key != key) {
      ++it;
      continue;
    }
    taken.push_back(std::move(it->second.callback));
    it = waiters_.erase(it);
  }
  return taken;
}

Rendezvous::WaiterId Rendezvous::Get(uint64_t epoch, const std::string& key, Callback callback) {
  absl::StatusOr<std::string> answer;
  WaiterId id = 0;
  {
    absl::MutexLock lock(&mutex_);
    id = next_waiter_++;
    const auto value = values_.find(key);
    if (!IsCurrent(epoch)) {
      answer = OldEpoch(epoch);
    } else if (value != values_.end()) {
      answer = value->second;
    } else {
      waiters_[id] = {.key = key, .callback = std::move(callback)};
      return id;
    }
  }
  callback(std::move(answer));
  return id;
}

void Rendezvous::CancelGet(WaiterId waiter) {
  Callback callback;
  {
    absl::MutexLock lock(&mutex_);
    const auto entry = waiters_.find(waiter);
    if (entry == waiters_.end()) return;
    callback = std::move(entry->second.callback);
    waiters_.erase(entry);
  }
  callback(absl::CancelledError("the caller no longer waits"));
}

}  // namespace conclave::coordinator
